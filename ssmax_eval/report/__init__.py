"""One self-contained HTML page of runs. Reads scores, never computes correctness; imports no torch."""

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from .. import statistics
from ..errors import UserError
from ..results import Run, find_runs, load_results
from . import figures, masses
from .losses import section as loss_section

SHOWN_PER_TRIAL = (
    "trial seed needle question expected predicted correct first_correct answer_nll answer_ranks margin "
    "realised_depth_percent needle_start needle_end prompt_sha256 error"
).split()
NEEDLE = ["prompt_sha256", "attention_swapped", "scoring"]  # columns that make rows a needle grid's
LOSS = ["measure", "attention_swapped", "nll_sum"]


def report(
    data: pd.DataFrame | Sequence[str | Path | Run] | str | Path,
    out: str | Path,
    title: str = "",
    figures_folder: str | Path | None = None,
) -> Path:
    """Write one HTML file of probes' rows and return its path; with figures_folder, the figures too, as SVG, PNG and PDF.

    data: a DataFrame of load_results, or runs, or paths of runs. title: the heading, by default what the page holds.
    Raises UserError for data without rows.
    """
    records: list[dict[str, Any]] = []
    if not isinstance(data, pd.DataFrame):
        items = [data] if isinstance(data, str | Path) else data
        found = [run for item in items for run in ([item] if isinstance(item, Run) else find_runs(item))]
        runs = list({run.folder.resolve(): run for run in found}.values())
        records = [{"run_id": run.run_id, **run.record()} for run in runs]
        data = load_results(*runs)
    prompts, documents = (part_with(data, columns) for columns in (NEEDLE, LOSS))
    if prompts.empty and documents.empty:
        raise UserError("report: no rows of a probe in the runs given; run `ssmax-eval needle` or another probe first")
    sections, attentions, losses = [], [], []
    if not prompts.empty:
        rows = statistics.with_series(prompts)
        train_lengths = trained(rows, records)
        for number, (_, part) in enumerate(rows.groupby(statistics.TASK, sort=False), 1):
            heading = statistics.task_name(part)
            sections.append(section(number, heading, part, train_lengths, figures_folder))
            if "mass_answer" in part:
                attentions.append(masses.section(number, heading, part, records, train_lengths, figures_folder))
    if not documents.empty:
        rows = statistics.with_series(documents)
        losses = [
            loss_section(number, part, trained(rows, records), figures_folder)
            for number, (_, part) in enumerate(rows.groupby(statistics.TEXT, sort=False), 1)
        ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssmax_eval", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html.j2").render(
        title=title or heading_of(sections, attentions, losses),
        sections=sections,
        attentions=[*filter(None, attentions)],
        losses=losses,
        records=records,
        records_text=json.dumps(records, indent=1),
    )
    return write(Path(out), page)


def heading_of(sections: Sequence[Any], attentions: Sequence[Any], losses: Sequence[Any]) -> str:
    """Return the heading of a page that holds these parts."""
    parts = {"needle in a haystack": sections, "attention on the needle": [*filter(None, attentions)], "loss": losses}
    text = ", ".join(name for name, part in parts.items() if part)
    return text[:1].upper() + text[1:]


def part_with(data: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return the rows of one kind of probe, told by the first of the columns that it alone has."""
    return data[data[columns[0]].notna()] if set(columns) <= set(data.columns) else data.iloc[:0]


def write(out: Path, page: str) -> Path:
    """Write a page at once and whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(out.name + ".tmp")
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, out)
    except (OSError, ValueError) as error:
        if out.name:
            out.with_name(out.name + ".tmp").unlink(missing_ok=True)
        raise UserError(f"report {str(out)!r}: cannot be written ({error}); give another path") from error
    return out


def trained(rows: pd.DataFrame, records: list[dict[str, Any]]) -> dict[str, int | None]:
    """Return each series' training length, where a run record tells it."""
    known = {record["run_id"]: record.get("model", {}).get("train_length") for record in records}
    if "run_id" not in rows:
        return {}
    first = rows.drop_duplicates("series").set_index("series")["run_id"]
    return {str(series): known.get(run_id) for series, run_id in first.items()}


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


class _CallableModule(ModuleType):
    """Lets `ssmax_eval.report(runs, "x.html")` and `ssmax_eval.report.figures` both be what they look like."""

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
