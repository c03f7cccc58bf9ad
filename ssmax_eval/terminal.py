"""What a command leaves in the terminal: tables, or one JSON object, and the report's path."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import statistics
from .results import Run, load_results, run_id_of


def print_runs(runs: list[Run], output_path: Path, want_report: bool, as_json: bool) -> None:
    """Print the grids and write the report of these runs; stdout ends with the report's path."""
    from .report import report  # the plotting libraries take seconds, which the other tables need not wait for

    rows = statistics.with_series(load_results(*runs))
    folder = Path("reports") if output_path == Path("results") else output_path / "reports"
    page = None
    if want_report:
        page = report(runs, folder / f"needle-{run_id_of({'runs': [run.run_id for run in runs]})[:8]}.html")
    if as_json:
        cells = statistics.cells(rows).astype(object).where(lambda frame: frame.notna(), None)
        print(
            json.dumps(
                {
                    "runs": [str(run.folder) for run in runs],
                    "cells": cells.to_dict("records"),
                    "failed": int(rows["correct"].isna().sum()),
                    "report": None if page is None else str(page),
                }
            )
        )
        return
    print_grids(rows)
    if failed := int(rows["correct"].isna().sum()):
        reasons = rows.loc[rows["correct"].isna(), "error"].value_counts()
        print(
            f"{failed} prompts could not be scored: {', '.join(f'{reason} ({count})' for reason, count in reasons.items())}"
        )
    print("\n".join(f"run {run.folder}" for run in runs))
    if page is not None:
        print(page)


def print_grids(rows: pd.DataFrame) -> None:
    """Print each series' grid, depths down, lengths across, the mean of each length last."""
    for _, part in rows.groupby([*statistics.TASK, "series"], sort=False):
        cells, means = statistics.cells(part), statistics.lengths(part)
        if cells.empty:
            continue
        lengths = sorted(cells["context_length"].unique())
        at = {(cell["depth_percent"], cell["context_length"]): cell for cell in cells.to_dict("records")}
        lines = [
            [f"{depth:g}%", *(value_text(at.get((depth, n))) for n in lengths)]
            for depth in sorted(cells["depth_percent"].unique())
        ]
        by_length = {line["context_length"]: line for line in means.to_dict("records")}
        lines.append(["mean", *(value_text(by_length.get(n)) for n in lengths)])
        title = f"{part['series'].iloc[0]}: {statistics.task_name(part)}"
        print_table(["depth", *(f"{n:,}" for n in lengths)], lines, title)
    extra = statistics.controls(rows)
    for line in extra.to_dict("records"):
        at_length = "" if line["control"] == "needle-only" else f" at {line['context_length']:,.0f}"
        print(f"{line['series']}: {line['control']}{at_length}: {value_text(line)} of {line['scored']} prompts")


def value_text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['accuracy']:.2f}" if cell["scored"] else "failed"


def print_table(columns: list[str], lines: list[list[str]], title: str = "") -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for line in lines:
        table.add_row(*(Text(str(part)) for part in line))
    if title:
        print(title)
    # as wide as it needs when nobody looks: a log must not wrap cells
    Console(width=None if sys.stdout.isatty() else 200).print(table)
