"""The page's part on needle grids: one section for each task and haystack."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from .. import statistics
from . import figures

SHOWN_PER_TRIAL = (
    "trial seed needle question expected predicted correct first_correct answer_nll answer_ranks margin "
    "realised_depth_percent needle_start needle_end prompt_sha256 error"
).split()


def section(
    number: int,
    heading: str,
    rows: pd.DataFrame,
    train_lengths: dict[str, int | None],
    figures_folder: str | Path | None,
) -> dict[str, Any]:
    """Return what the template shows of one task and haystack."""
    cells = statistics.cells(rows)
    figure = None if cells.empty else figures.grids(cells, train_lengths)
    if figure is not None and figures_folder is not None:
        name = "".join(c if c.isalnum() else "-" for c in heading)
        figures.save(figure, Path(figures_folder), f"{number:02}-{name[:80]}")
    series = list(dict.fromkeys(cells["series"]))
    baseline = cells[cells["series"] == series[0]] if series else cells
    means = statistics.lengths(rows)
    tables = [
        {
            "series": name,
            "train_length": train_lengths.get(name),
            **table(cells[cells["series"] == name], means[means["series"] == name], rows[rows["series"] == name]),
            "difference": None if name == series[0] else differences(cells[cells["series"] == name], baseline),
        }
        for name in series
    ]
    return {
        "heading": heading,
        "svg": None if figure is None else Markup(figures.svg(figure)),
        "tables": tables,
        "baseline": series[0] if series else "",
        "controls": statistics.controls(rows).to_dict("records"),
        "failed": int(rows["correct"].isna().sum()),
        "samples": len(rows),
    }


def table(cells: pd.DataFrame, means: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """Return a series' grid as lines of cells, each with its value, colours, counts and trials."""
    lengths, depths = sorted(cells["context_length"].unique()), sorted(cells["depth_percent"].unique())
    at = {(cell["context_length"], cell["depth_percent"]): cell for cell in cells.to_dict("records")}
    grid_rows = rows[rows["control"].isna()]
    trials = {
        key: list(map(shown, part.to_dict("records")))
        for key, part in grid_rows.groupby(["context_length", "depth_percent"])
    }
    mean_at = {line["context_length"]: line["accuracy"] for line in means.to_dict("records")}
    lines = []
    for depth in depths:
        line = []
        for length in lengths:
            cell = at.get((length, depth))
            value = math.nan if cell is None else cell["accuracy"]
            background = None if math.isnan(value) else figures.colour(value)
            line.append(
                {
                    "length": int(length),
                    "depth": depth,
                    "state": "untested" if cell is None else "failed" if math.isnan(value) else "scored",
                    "value": None if math.isnan(value) else value,
                    "background": background,
                    "ink": background and figures.ink(background),
                    "scored": 0 if cell is None else int(cell["scored"]),
                    "failed": 0 if cell is None else int(cell["failed"]),
                    "trials": trials.get((length, depth), []),
                }
            )
        lines.append({"depth": depth, "cells": line})
    return {
        "lengths": [int(length) for length in lengths],
        "means": [None if math.isnan(mean_at[length]) else mean_at[length] for length in lengths],
        "lines": lines,
    }


def differences(cells: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, Any] | None:
    """Return accuracy minus the baseline's as lines of cells; None where the two share no cell."""
    grid = figures.pivot(cells, "accuracy").sub(figures.pivot(baseline, "accuracy"))
    if grid.isna().all(axis=None):
        return None
    lines = []
    for depth, line in grid.iterrows():
        shades = [None if math.isnan(v) else figures.colour(v, difference=True) for v in line]
        inks = [shade and figures.ink(shade) for shade in shades]
        values = [None if math.isnan(v) else v for v in line]
        lines.append({"depth": depth, "cells": [*zip(values, shades, inks, strict=True)]})
    return {"lengths": [int(length) for length in grid.columns], "lines": lines}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a cell's panel shows of one trial, JSON values only."""
    picked = {key: row.get(key) for key in SHOWN_PER_TRIAL}
    return {key: None if is_missing(value) else value for key, value in picked.items()}


def is_missing(value: Any) -> bool:
    return not isinstance(value, list) and bool(pd.isna(value))
