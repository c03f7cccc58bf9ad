"""The page's part on RoPE theta as an axis, and on the grid in which each cell has its best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....headline import headline
from ....report import figures
from ....report.context import Context
from ....report.section import Section, by_task
from ....statistics.grids import COUNTED
from ....statistics.series import PROMPT, told
from ....verdict import verdict


@dataclass(frozen=True)
class Theta:
    """One task's accuracy by theta factor, and what it says with the best factor in each cell."""

    number: int
    heading: str
    table: pd.DataFrame
    cells: pd.DataFrame
    means: pd.DataFrame
    verdict: list[dict[str, Any]]


NEEDED = [
    *PROMPT,
    *COUNTED,
    *("subject", "attention", "attention_swapped", "rope", "rope_theta_factor", "run_id"),
]


class ThetaAxis(Section[Theta]):
    """RoPE theta as an axis, where it is one."""

    place = 30

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Theta]:
        out = []
        for number, heading, part in by_task(told(rows, NEEDED)):
            table = statistics.theta_lengths(part)
            if not table.empty:
                best = statistics.best_theta(part)
                said = fair(part, best, table, context)
                out.append(Theta(number, heading, table, statistics.cells(best), statistics.lengths(best), said))
        return out

    def page(self, found: Sequence[Theta], context: Context) -> Markup:
        return self.rendered(context, sections=[section(each, context) for each in found])


SECTION = ThetaAxis()


def fair(rows: pd.DataFrame, best: pd.DataFrame, table: pd.DataFrame, context: Context) -> list[dict[str, Any]]:
    """Return the verdict where each cell has its best factor; who was run at one theta only takes part as it is."""
    rivals, baseline = at_best(rows, best, set(table["subject"]), context)
    said = verdict(rivals, baseline, statistics.effective_lengths(rivals), context.train_lengths(rivals))
    return said if len(said) > 1 else []


def at_best(rows: pd.DataFrame, best: pd.DataFrame, subjects: set[str], context: Context) -> tuple[pd.DataFrame, str]:
    """Return the rows of all rivals, those of subjects at the best factor of each cell, and the baseline among them."""
    rivals = pd.concat([best, rows[rows["control"].isna() & ~rows["subject"].isin(subjects)]])
    subject = rows.loc[rows["series"] == context.baseline_of(rows), "subject"].iloc[0]
    named = rivals.drop_duplicates("series").set_index("series")["subject"]
    return rivals, str(named.index[(named == subject).to_numpy().argmax()])


def headline_at_best(rows: pd.DataFrame, context: Context, things: str) -> tuple[str, list[str]] | None:
    """Return the headline with the best theta in each cell, and how sure it is, where theta is an axis of several models."""
    best = statistics.best_theta(rows)
    if not len(best):
        return None
    rivals, baseline = at_best(rows, best, set(best["subject"]), context)
    if rivals["series"].nunique() < 2:
        return None
    pairs = statistics.beside(rivals, baseline)
    factors = rows.groupby(["subject", "context_length"])["rope_theta_factor"].nunique()
    chosen = {length for _, length in factors[factors > 1].index}
    if not any(
        chosen & {*each.pairs["context_length"]} for each in pairs
    ):  # no theta was chosen where two are compared
        return None
    by_length, pooled = (
        statistics.compare(pairs, baseline, ("context_length",)),
        statistics.compare(pairs, baseline, ()),
    )
    means, trained = statistics.lengths(rivals), context.train_lengths(rivals)
    said = headline(means, by_length, pooled, baseline, trained, things)
    said = said.replace(statistics.at_best_theta(""), "")
    said = said[0].lower() + said[1:] if said.startswith(("From ", "At ", "Where ")) else said
    sure = [
        f"{each['series']}: {' '.join(each['sentences'])}"
        for each in verdict(rivals, baseline, statistics.effective_lengths(rivals), trained, pairs, by_length, pooled)
    ]
    return f"With the RoPE theta that finds most in each cell, chosen on these prompts: {said}", sure


def section(found: Theta, context: Context) -> dict[str, Any]:
    """Return the panel of theta factors and the grid in which each cell has its best."""
    lengths = sorted(found.table["context_length"].unique())
    subjects = []
    for name, part in found.table.groupby("subject", sort=False):
        accuracy = part.pivot(index="rope_theta_factor", columns="context_length", values="accuracy").reindex(
            columns=lengths
        )
        series = statistics.at_best_theta(name)
        own = found.means[found.means["series"] == series].set_index("context_length")["accuracy"].reindex(lengths)
        subjects.append(
            {
                "subject": name,
                "lines": [
                    {"factor": factor, "values": [None if pd.isna(v) else float(v) for v in line]}
                    for factor, line in zip(accuracy.index, accuracy.to_numpy(), strict=True)
                ],
                "best": [None if pd.isna(v) else float(v) for v in own],
            }
        )
    return {
        "heading": found.heading,
        "verdict": found.verdict,
        "figure": context.drawn(figures.theta_figure(found.table), f"theta-{found.number:02}"),
        "fair": context.drawn(figures.grids(found.cells, {}), f"theta-best-{found.number:02}"),
        "lengths": [int(length) for length in lengths],
        "subjects": subjects,
    }
