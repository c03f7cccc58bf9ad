"""The page's part on needle grids: cells with their intervals, differences from the baseline, and how far each series reaches."""

import math
from typing import Any

import pandas as pd

from .. import statistics
from ..statistics.clusters import trial_numbers
from ..statistics.series import of_grid
from ..verdict import too_few, verdict
from . import figures
from .context import Context
from .depths import FAR_OFF, with_placed

UNTESTED: dict[str, Any] = {"placed": None, "accuracy": math.nan, "low": None, "high": None, "scored": 0, "failed": 0}


def section(number: int, heading: str, rows: pd.DataFrame, context: Context) -> dict[str, Any]:
    """Return what the template shows of one task and haystack."""
    cells, train_lengths = statistics.cells(rows), context.train_lengths(rows)
    base = {"heading": heading, "number": number, "controls": statistics.controls(rows).to_dict("records")}
    base |= {"far_off": FAR_OFF, "placed": False}
    base |= {"failed": int(rows["correct"].isna().sum()), "samples": len(rows), "trials": 0}
    if cells.empty:
        return base | {"figure": None, "tables": [], "reach": [], "verdict": [], "baseline": ""}
    cells = with_placed(cells, rows)
    base["placed"] = bool(cells["placed"].notna().any())
    grid = of_grid(rows, ["series", "attention", "attention_swapped", "rope", "seed", "trial"])
    baseline = context.baseline_of(grid)
    by_cell = statistics.compare(rows, baseline)
    name = "".join(c if c.isalnum() else "-" for c in heading)[:80]
    means, reach = statistics.lengths(rows), statistics.effective_lengths(rows)
    tables = [
        {
            "series": each,
            "key": figures.key_of(each),
            "train_length": train_lengths.get(each),
            **table(cells[cells["series"] == each], means[means["series"] == each]),
            "difference": differences(by_cell[by_cell["series"] == each]),
        }
        for each in cells["series"].unique()
    ]
    trials = int(reach["trials"].max()) if len(reach) else 0
    run = trial_numbers(grid).nunique() if trials else 0
    return base | {
        "trials": trials,
        "overlap": run > trials,
        "figure": context.drawn(figures.grids(cells, train_lengths, by_cell), f"{number:02}-{name}"),
        "tables": tables,
        "reach": reach.to_dict("records"),
        "verdict": verdict(rows, baseline, reach, train_lengths),
        "baseline": baseline,
    }


def table(cells: pd.DataFrame, means: pd.DataFrame) -> dict[str, Any]:
    """Return a series' grid as lines of cells, each with its value, interval, colours and counts."""
    lengths, depths = sorted(cells["context_length"].unique()), sorted(cells["depth_percent"].unique())
    at = {(cell["context_length"], cell["depth_percent"]): cell for cell in cells.to_dict("records")}
    mean_at = {line["context_length"]: line for line in means.to_dict("records")}
    of_lengths = [mean_at[length] for length in lengths]
    lines = []
    for depth in depths:
        line = []
        for length in lengths:
            cell = at.get((length, depth), UNTESTED)
            value = cell["accuracy"]
            background = None if math.isnan(value) else figures.colour(value)
            line.append(
                {
                    "length": int(length),
                    "depth": depth,
                    "state": "untested" if cell is UNTESTED else "failed" if math.isnan(value) else "scored",
                    "value": None if math.isnan(value) else value,
                    "low": cell["low"],
                    "high": cell["high"],
                    "placed": cell["placed"],
                    "background": background,
                    "ink": background and figures.ink(background),
                    "scored": int(cell["scored"]),
                    "failed": int(cell["failed"]),
                }
            )
        lines.append({"depth": depth, "cells": line})
    return {
        "lengths": [int(length) for length in lengths],
        "means": [None if math.isnan(line["accuracy"]) else line | {"interval": interval(line)} for line in of_lengths],
        "lines": lines,
    }


def interval(line: dict[str, Any]) -> str:
    """Write the interval of a line of statistics.lengths, and over how many trials it is where those are what is independent."""
    if line["plan"] != statistics.BY_TRIAL:
        return f"95% interval {line['low']:.2f} to {line['high']:.2f}"
    if (line["low"], line["high"]) == (0, 1):
        return too_few(line["trials"])
    return f"95% interval {line['low']:.2f} to {line['high']:.2f}, over {line['trials']:,} trials"


def differences(comparison: pd.DataFrame) -> dict[str, Any] | None:
    """Return one series' lines of statistics.compare by cell as lines of cells; None where it shares no cell with the baseline."""
    if comparison.empty:
        return None
    lengths, depths = sorted(comparison["context_length"].unique()), sorted(comparison["depth_percent"].unique())
    at = {(line["context_length"], line["depth_percent"]): line for line in comparison.to_dict("records")}
    lines = []
    for depth in depths:
        found = [at.get((length, depth)) for length in lengths]
        cells = []
        for line in found:
            if line is not None:
                shade = figures.colour(line["difference"], difference=True)
                line |= {"shade": shade, "ink": figures.ink(shade), "open": line["low"] <= 0 <= line["high"]}
            cells.append(line)
        lines.append({"depth": depth, "cells": cells})
    shared = bool(comparison["shared"].all())
    paired = bool((comparison["pairs"] > 0).all())
    return {"lengths": [int(length) for length in lengths], "lines": lines, "shared": shared, "paired": paired}
