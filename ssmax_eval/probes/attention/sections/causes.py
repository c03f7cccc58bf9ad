"""The page's part on why prompts were not found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, Table, by_task, records
from ....statistics.causes import RESTS_ON
from ....statistics.series import told


@dataclass(frozen=True)
class Causes:
    """One task's causes of failure, by length and by cell."""

    number: int
    heading: str
    counts: pd.DataFrame
    cells: pd.DataFrame
    restored: dict[tuple[str, str], tuple[int, int]]

    def named(self, series: str, cause: str) -> str:
        """Return what a cause is called: with how many of its prompts restored attention repairs, where that was tried."""
        if (series, cause) not in self.restored:
            return cause
        what = "fading: " if cause == statistics.FADED else ""
        return f"{cause} ({what}restored attention repairs {' of '.join(map(str, self.restored[series, cause]))})"


class WhyNotFound(Section[Causes]):
    """Why prompts were not found."""

    place = 20

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Causes]:
        out = []
        for number, heading, part in by_task(rows):
            if "top_mass_answer" not in part:
                continue
            explained = statistics.with_causes(told(part, [*RESTS_ON, "depth_percent", "restored"]), context.thresholds)
            explained = explained[explained.groupby("series")["mass_there"].transform("count") > 0]
            if not explained.empty:
                cells = statistics.cause_counts(explained, ("context_length", "depth_percent"))
                counts, repaired = statistics.cause_counts(explained), statistics.restored_causes(explained)
                out.append(Causes(number, heading, counts, cells, repaired))
        return out

    def tables(self, found: Sequence[Causes]) -> Iterator[Table | str]:
        """Yield how many prompts of each length were found, and why the others were not."""
        for each in found:
            lengths = sorted(each.counts["context_length"].unique())
            lines = []
            for name, own in each.counts.groupby("series", sort=False):
                at = own.set_index("context_length")
                lines += [
                    [
                        str(name),
                        each.named(str(name), cause),
                        *(str(at.loc[n, cause]) if n in at.index else "" for n in lengths),
                    ]
                    for cause in statistics.CAUSES
                    if own[cause].any()
                ]
            columns = ["series", "cause", *(f"{n:,}" for n in lengths)]
            of = f": {each.heading}" if len(found) > 1 else ""
            yield Table(f"prompts, and why they were not found{of}", columns, lines)

    def summary(self, found: Sequence[Causes]) -> dict[str, Any]:
        repaired = [
            {"series": series, "cause": cause, "repaired": right, "prompts": of}
            for each in found
            for (series, cause), (right, of) in each.restored.items()
        ]
        return {"causes": records(each.counts for each in found)} | ({"causes_repaired": repaired} if repaired else {})

    def page(self, found: Sequence[Causes], context: Context) -> Markup:
        return self.rendered(context, sections=[section(each, context) for each in found])


SECTION = WhyNotFound()


def section(found: Causes, context: Context) -> dict[str, Any]:
    """Return what the template shows of one task's causes of failure."""
    counts, cells = found.counts, found.cells
    return {
        "heading": found.heading,
        "figure": context.drawn(figures.causes_figure(counts), f"causes-{found.number:02}"),
        "thresholds": context.thresholds,
        "causes": [cause for cause in statistics.CAUSES if counts[cause].any()],
        "tables": [
            {"series": name, "key": figures.key_of(str(name)), "lines": part.to_dict("records"),
             "names": {cause: found.named(str(name), cause) for cause in statistics.CAUSES},
             "cells": cells[cells["series"] == name].to_dict("records")}
            for name, part in counts.groupby("series", sort=False)
        ],
    }  # fmt: skip
