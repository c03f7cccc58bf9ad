"""The page's part on needle grids: cells with their intervals, differences from the baseline, and how far each series reaches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....data.needles import FAR_OFF
from ....headline import headline
from ....report import figures
from ....report.context import Context, reached
from ....report.section import Section, Table, by_task, records
from ....statistics.clusters import trial_numbers
from ....statistics.series import of_grid
from ....verdict import too_few, verdict
from ..ceiling import ceiling_table
from ..depths import with_placed
from ..overview import MANY, overview
from .seeds import headline_over_seeds
from .theta import headline_at_best

WHOSE = ["series", "attention", "attention_swapped", "rope", "seed", "trial"]
HIDDEN = {"number": "numbers", "word": "words", "uuid": "UUIDs"}
UNTESTED: dict[str, Any] = {"placed": None, "accuracy": math.nan, "low": None, "high": None, "scored": 0, "failed": 0}


@dataclass(frozen=True)
class Grid:
    """One task's numbers: tables of statistics, and the verdict in words."""

    number: int
    heading: str
    rows: pd.DataFrame
    cells: pd.DataFrame
    means: pd.DataFrame
    controls: pd.DataFrame
    baseline: str = ""
    by_cell: pd.DataFrame = field(default_factory=pd.DataFrame)
    by_length: pd.DataFrame = field(default_factory=pd.DataFrame)
    reach: pd.DataFrame = field(default_factory=pd.DataFrame)
    ceilings: pd.DataFrame = field(default_factory=pd.DataFrame)
    verdict: list[dict[str, Any]] = field(default_factory=list)
    headline: str = ""
    sure: Sequence[str] = ()  # how sure the headline is, where it is not of two series at one length


class Grids(Section[Grid]):
    """Cells with their intervals, differences from the baseline, how far each series reaches, and the verdict in words."""

    place = 10
    heading = "needle in a haystack"

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Grid]:
        return [grid(number, heading, part, context) for number, heading, part in by_task(rows)]

    def tables(self, found: Sequence[Grid]) -> Iterator[Table | str]:
        """Yield each series' grid, depths down, lengths across, the mean of each length last; controls; the verdict."""
        for each in found:
            for name, cells in each.cells.groupby("series", sort=False):
                means = each.means[each.means["series"] == name]
                yield grid_table(f"{name}: {each.heading}", cells, means)
            for line in each.controls.to_dict("records"):
                at_length = "" if line["control"] == "needle-only" else f" at {line['context_length']:,.0f}"
                yield f"{line['series']}: {line['control']}{at_length}: {value_text(line)} of {line['scored']} prompts"
            if len(each.ceilings):
                yield ceiling_table(each.heading, each.ceilings)
        for each in found:
            yield f"{each.heading}: {each.headline}" if len(found) > 1 and each.headline else each.headline
            for said in each.verdict:
                yield " ".join([f"{said['series']}:", *said["sentences"]])

    def more_tables(self, found: Sequence[Grid]) -> Iterator[Table]:
        """Yield effective lengths, and what each series finds beside the baseline at each length."""
        for each in found:
            yield Table(
                f"effective context length: {each.heading}",
                ["series", "short score", "at", "effective length", "95% low", "95% high", "prompts", "trials"],
                [
                    [
                        line["series"],
                        f"{line['accuracy']:.2f}",
                        str(line["shortest"]),
                        reached(line, "effective_length", "beyond"),
                        reached(line, "low", "low_beyond"),
                        reached(line, "high", "high_beyond"),
                        str(line["prompts"]),
                        str(line["trials"]),
                    ]
                    for line in each.reach.to_dict("records")
                ],
            )
            columns = ("accuracy", "accuracy_baseline", "difference", "low", "high", "p", "p_holm")
            yield Table(
                f"beside {each.baseline}: {each.heading}",
                ["series", "context length", *columns, "pairs", "trials"],
                [
                    [
                        line["series"],
                        str(line["context_length"]),
                        *(f"{line[name]:.4g}" for name in columns),
                        str(line["pairs"]),
                        str(line["trials"]),
                    ]
                    for line in each.by_length.to_dict("records")
                ],
            )

    def summary(self, found: Sequence[Grid]) -> dict[str, Any]:
        return {
            "cells": records(each.cells for each in found),
            "effective_lengths": records(each.reach for each in found),
            "ceilings": records(each.ceilings for each in found),
            "comparison": records(each.by_length for each in found),
            "headline": [each.headline for each in found],
            "verdict": [said for each in found for said in each.verdict],
        }

    def lead(self, found: Sequence[Grid], context: Context) -> Markup:
        panels = {each.heading: each.means for each in found if len(each.means.dropna(subset=["accuracy"]))}
        trained = {name: length for each in found for name, length in context.train_lengths(each.rows).items()}
        drawn = context.drawn(figures.found_figure(panels, trained), "found-by-length") if panels else None
        names = [*dict.fromkeys(name for each in found for name in each.means["series"])]
        several = len(found) > 1
        overviews = [
            overview(f"Overview: {each.heading}" if several else "Overview", each.means, each.reach, trained, names)
            for each in found
            if each.means["series"].nunique() >= MANY
        ]
        return context.render(
            "probes/needle/sections/verdict.html.j2", sections=found, figure=drawn, overviews=overviews, single=len(panels) == 1,
            bands=len(names) <= figures.FEW, trained=any(trained.values()),
        )  # fmt: skip

    def page(self, found: Sequence[Grid], context: Context) -> Markup:
        shown = [section(each, context) for each in found]
        return self.rendered(context, sections=shown, fewest=statistics.FEWEST)


SECTION = Grids()


def grid(number: int, heading: str, rows: pd.DataFrame, context: Context) -> Grid:
    """Return the numbers of one task and haystack."""
    cells, means, controls = statistics.cells(rows), statistics.lengths(rows), statistics.controls(rows)
    if cells.empty:
        return Grid(number, heading, rows, cells, means, controls)
    baseline = context.baseline_of(of_grid(rows, WHOSE))
    reach, pairs = statistics.effective_lengths(rows), statistics.beside(rows, baseline)
    by_length, by_cell = statistics.compare(pairs, baseline, ("context_length",)), statistics.compare(pairs, baseline)
    trained = context.train_lengths(rows)
    pooled = statistics.compare(pairs, baseline, ())
    said = verdict(rows, baseline, reach, trained, pairs, by_length, pooled)
    things = HIDDEN.get(str(rows["value"].iloc[0]), "answers")
    in_short, sure = headline_at_best(rows, context, things) or headline_over_seeds(rows, context, things) or ("", ())
    in_short = in_short or headline(means, by_length, pooled, baseline, trained, things)
    alone = statistics.ceilings(rows)
    return Grid(
        number, heading, rows, cells, means, controls, baseline, by_cell, by_length, reach, alone, said, in_short, sure
    )


def section(grid: Grid, context: Context) -> dict[str, Any]:
    """Return what the template shows of one task and haystack."""
    rows, reach, train_lengths = grid.rows, grid.reach, context.train_lengths(grid.rows)
    base = {"heading": grid.heading, "number": grid.number, "controls": grid.controls.to_dict("records")}
    base |= {"far_off": FAR_OFF, "placed": False}
    base |= {"failed": int(rows["correct"].isna().sum()), "samples": len(rows), "trials": 0}
    if grid.cells.empty:
        return base | {"figure": None, "tables": [], "reach": [], "baseline": ""}
    cells = with_placed(grid.cells, rows)
    base["placed"] = bool(cells["placed"].notna().any())
    name = "".join(c if c.isalnum() else "-" for c in grid.heading)[:80]
    tables = [
        {
            "series": each,
            "key": figures.key_of(each),
            "train_length": train_lengths.get(each),
            **table(cells[cells["series"] == each], grid.means[grid.means["series"] == each]),
            "difference": differences(grid.by_cell[grid.by_cell["series"] == each]),
        }
        for each in cells["series"].unique()
    ]
    trials = int(reach["trials"].max()) if len(reach) else 0
    run = trial_numbers(of_grid(rows, WHOSE)).nunique() if trials else 0
    return base | {
        "trials": trials,
        "overlap": run > trials,
        "figure": context.drawn(figures.grids(cells, train_lengths, grid.by_cell), f"{grid.number:02}-{name}"),
        "tables": tables,
        "reach": reach.to_dict("records"),
        "ceilings": ceiling_table(grid.heading, grid.ceilings) if len(grid.ceilings) else None,
        "baseline": grid.baseline,
    }


def grid_table(title: str, cells: pd.DataFrame, means: pd.DataFrame) -> Table:
    """Return one series' grid as text."""
    lengths = sorted(cells["context_length"].unique())
    at = {(cell["depth_percent"], cell["context_length"]): cell for cell in cells.to_dict("records")}
    lines = [
        [f"{depth:g}%", *(value_text(at.get((depth, n))) for n in lengths)]
        for depth in sorted(cells["depth_percent"].unique())
    ]
    by_length = {line["context_length"]: line for line in means.to_dict("records")}
    lines.append(["mean", *(value_text(by_length.get(n)) for n in lengths)])
    if tells_credit(means):
        lines.append(["credit", *(credit_text(by_length.get(n)) for n in lengths)])
    return Table(title, ["depth", *(f"{n:,}" for n in lengths)], lines)


def tells_credit(means: pd.DataFrame) -> bool:
    """Tell whether some answers are right in part, so that the mean credit says what the accuracy does not."""
    return bool((means["credit"] - means["accuracy"]).abs().max() > 1e-9)


def credit_text(line: dict[str, Any] | None) -> str:
    return "" if line is None or pd.isna(line["credit"]) else f"{line['credit']:.2f}"


def value_text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['accuracy']:.2f}" if cell["scored"] else "failed"


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
        "credit": [credit_text(mean_at.get(length)) for length in lengths] if tells_credit(means) else [],
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
    tests = " or ".join(dict.fromkeys(comparison["test"]))
    return {"lengths": [int(n) for n in lengths], "lines": lines, "shared": shared, "paired": paired, "test": tests}
