"""The page's parts on why prompts were not found, and on RoPE theta as an axis."""

from typing import Any

import pandas as pd

from .. import statistics
from ..verdict import verdict
from . import figures, grids
from .context import Context


def section(number: int, heading: str, rows: pd.DataFrame, context: Context) -> dict[str, Any] | None:
    """Return what the template shows of one task's causes of failure; None where no row has what they rest on."""
    explained = statistics.with_causes(rows, context.thresholds)
    known = explained.groupby("series")["cause"].transform(lambda cause: (cause != "unknown").any())
    known &= explained["mass_there"].groupby(explained["series"]).transform("count") > 0
    explained = explained[known]
    if explained.empty:
        return None
    counts = statistics.cause_counts(explained)
    cells = statistics.cause_counts(explained, ("context_length", "depth_percent"))
    shown = [cause for cause in statistics.CAUSES if counts[cause].any()]
    return {
        "heading": heading,
        "figure": context.drawn(figures.causes_figure(counts), f"causes-{number:02}"),
        "thresholds": context.thresholds,
        "causes": shown,
        "tables": [
            {"series": name, "key": figures.key_of(str(name)), "lines": part.to_dict("records"),
             "cells": cells[cells["series"] == name].to_dict("records")}
            for name, part in counts.groupby("series", sort=False)
        ],
    }  # fmt: skip


def theta_section(number: int, heading: str, rows: pd.DataFrame, context: Context) -> dict[str, Any] | None:
    """Return the panel of theta factors and the grid in which each cell has its best; None where theta is no axis."""
    table = statistics.theta_lengths(rows)
    if table.empty:
        return None
    best = statistics.best_theta(rows)
    cells, means = statistics.cells(best), statistics.lengths(best)
    lengths = sorted(table["context_length"].unique())
    subjects = []
    for name, part in table.groupby("subject", sort=False):
        accuracy = part.pivot(index="rope_theta_factor", columns="context_length", values="accuracy").reindex(
            columns=lengths
        )
        series = f"{name}, {statistics.BEST}"
        own = means[means["series"] == series].set_index("context_length")["accuracy"].reindex(lengths)
        subjects.append(
            {
                "subject": name,
                "lines": [
                    {"factor": factor, "values": [None if pd.isna(v) else float(v) for v in line]}
                    for factor, line in zip(accuracy.index, accuracy.to_numpy(), strict=True)
                ],
                "best": [None if pd.isna(v) else float(v) for v in own],
                "series": series,
                "grid": grids.table(cells[cells["series"] == series], means[means["series"] == series]),
            }
        )
    # who was run at one theta only takes part as it is
    fair = pd.concat([best, rows[rows["control"].isna() & ~rows["subject"].isin(table["subject"])]])
    subject = rows.loc[rows["series"] == context.baseline_of(rows), "subject"].iloc[0]
    baseline = next(name for name, part in fair.groupby("series", sort=False) if part["subject"].iloc[0] == subject)
    said = verdict(fair, str(baseline), statistics.effective_lengths(fair), context.train_lengths(fair))
    return {
        "heading": heading,
        "verdict": said if len(said) > 1 else [],
        "figure": context.drawn(figures.theta_figure(table), f"theta-{number:02}"),
        "fair": context.drawn(figures.grids(cells, {}), f"theta-best-{number:02}"),
        "lengths": [int(length) for length in lengths],
        "subjects": subjects,
    }
