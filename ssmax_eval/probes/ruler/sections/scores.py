"""The page's part on RULER: scores by task and length, their mean, and how far it holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....printable import printable
from ....report import figures
from ....report.context import Context, reached
from ....report.section import Section, Table, records
from ....statistics.ruler import THRESHOLD

SHOWN = 3  # prompts of a task and length whose answers are shown, those that lack most first


@dataclass(frozen=True)
class Ruler:
    """The scores of all series on one haystack. written: of each series some questions, references and what it wrote."""

    haystack: str
    scores: pd.DataFrame
    means: pd.DataFrame
    reach: pd.DataFrame
    train_lengths: dict[str, int | None]
    written: dict[str, Table]


class Scores(Section[Ruler]):
    """Scores by task and length, their mean over tasks, and the effective lengths."""

    place = 20
    lead_place = 20
    heading = "RULER"
    details = ("question", "references", "predicted")

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Ruler]:
        return [
            Ruler(
                str(haystack),
                statistics.ruler_scores(part),
                statistics.ruler_means(part),
                statistics.ruler_lengths(part),
                context.train_lengths(part),
                {str(name): answers(own) for name, own in part.groupby("series", sort=False)},
            )
            for haystack, part in rows.groupby("haystack", sort=False)
        ]

    def tables(self, found: Sequence[Ruler]) -> Iterator[Table | str]:
        """Yield the scores of each series, the means of all, and how far they hold."""
        for each in found:
            where = f", in {each.haystack}" if len(found) > 1 else ""
            for name, scores in each.scores.groupby("series", sort=False):
                yield of_series(
                    f"RULER: {name}{where}{prompts(scores)}", scores, each.means[each.means["series"] == name]
                )
            if each.means.empty:
                yield f"No task{where} has a score at every length of every series, so no mean over tasks is told."
                continue
            if each.scores["series"].nunique() > 1:
                yield of_all(f"RULER, mean over tasks{where}", each.means)
            yield effective(f"effective context length of RULER{where}", each.reach)
            if (common := int(each.means["tasks"].max())) < each.scores["task"].nunique():
                yield (
                    f"Means and effective lengths{where} are over {common} of {each.scores['task'].nunique()} tasks: those that have a "
                    "score at every length of every series."
                )
        yield (
            f"Score: the mean share of the references that stand in what is written. RULER's {THRESHOLD:.1%} is of its 13 tasks, "
            "two of which need a download and are not here."
        )

    def summary(self, found: Sequence[Ruler]) -> dict[str, Any]:
        return {
            "ruler": records(each.scores for each in found),
            "ruler_means": records(each.means for each in found),
            "ruler_effective_lengths": records(each.reach for each in found),
        }

    def page(self, found: Sequence[Ruler], context: Context) -> Markup:
        written = [(name, table) for each in found for name, table in each.written.items() if table.lines]
        return self.rendered(context, shown=[*self.tables(found)], written=written, heading=self.heading)

    def lead(self, found: Sequence[Ruler], context: Context) -> Markup:
        found = [each for each in found if len(each.means)]  # of none of whose prompts is a score known
        if not found:
            return Markup("")
        panels = {f"RULER, in {each.haystack}": each.means.rename(columns={"score": "accuracy"}) for each in found}
        trained = {name: length for each in found for name, length in each.train_lengths.items()}
        figure = context.drawn(figures.found_figure(panels, trained, "mean score over tasks"), "ruler")
        label = "RULER's mean score over tasks by context length, with its 95% interval"
        return context.lead("RULER", [[in_short(each)] for each in found], figure=figure, label=label)


SECTION = Scores()


def of_series(title: str, scores: pd.DataFrame, means: pd.DataFrame) -> Table:
    """Return a series' scores: tasks down, lengths across, the mean last."""
    lengths = sorted(scores["context_length"].unique())
    at = {(line["task"], line["context_length"]): line for line in scores.to_dict("records")}
    lines = [[task, *(between(at.get((task, n))) for n in lengths)] for task in scores["task"].unique()]
    mean = {line["context_length"]: line for line in means.to_dict("records")}
    lines.append(["mean", *(between(mean.get(n)) for n in lengths)])
    return Table(title, ["task", *(f"{n:,}" for n in lengths)], lines)


def of_all(title: str, means: pd.DataFrame) -> Table:
    """Return the means of all series, lengths across."""
    lengths = sorted(means["context_length"].unique())
    at = {(line["series"], line["context_length"]): line for line in means.to_dict("records")}
    lines = [[name, *(between(at.get((name, n))) for n in lengths)] for name in means["series"].unique()]
    return Table(title, ["series", *(f"{n:,}" for n in lengths)], lines)


def effective(title: str, reach: pd.DataFrame) -> Table:
    """Return how far each series holds, against RULER's threshold and against its own short score."""
    columns = ["series", "tasks", "short score", f"at least {THRESHOLD:.1%}", "95% interval"]
    columns += [f"at least {statistics.SHARE:.0%} of its short score", "95% interval"]
    lines = []
    for name, part in reach.groupby("series", sort=False):
        at = {line["against"]: line for line in part.to_dict("records")}
        cells = [cell for line in (at["threshold"], at["own"]) for cell in held(line)]
        short = f"{at['own']['score']:.2f} at {at['own']['shortest']:,}"
        lines.append([str(name), str(at["own"]["tasks"]), short, *cells])
    return Table(title, columns, lines)


def held(line: dict[Any, Any]) -> tuple[str, str]:
    """Write an effective length and its interval."""
    told = reached(line, "effective_length", "beyond")
    if line["trials"] < statistics.FEWEST:
        return told, "none, too few trials"
    return told, f"{reached(line, 'low', 'low_beyond')} to {reached(line, 'high', 'high_beyond')}"


def prompts(scores: pd.DataFrame) -> str:
    """Say how many prompts each task has at each length."""
    least, most = int(scores["prompts"].min()), int(scores["prompts"].max())
    return f", {least if least == most else f'{least} to {most}'} prompt{'s' * (most > 1)} a task and length; in brackets the 95% interval"


def answers(rows: pd.DataFrame) -> Table:
    """Return what a series wrote: of each task and length some prompts, those that lack most first."""
    worst = rows.sort_values("credit", na_position="first", kind="stable").groupby(
        ["task", "context_length"], sort=False
    )
    shown = worst.head(SHOWN).sort_values(["task", "context_length", "trial"], kind="stable")
    lines = [
        [
            str(line["task"]), f"{line['context_length']:,}", printable(str(line["question"])),
            printable(", ".join(line["references"])), printable(str(line["predicted"] or "")),
            "failed" if pd.isna(line["credit"]) else f"{line['credit']:.2f}",
        ]
        for line in shown.to_dict("records")
    ]  # fmt: skip
    return Table("", ["task", "length", "question", "references", "written", "score"], lines)


def between(line: dict[Any, Any] | None) -> str:
    """Write a score or a mean with its interval, if it has one."""
    if line is None:
        return ""
    if not line["scored"]:
        return "failed"
    few = (line["low"], line["high"]) == (0, 1)
    return f"{line['score']:.2f}" + ("" if few else f" ({line['low']:.2f} to {line['high']:.2f})")


def in_short(found: Ruler) -> str:
    """Say what each series scores at its shortest and longest length."""
    parts = []
    for name, means in found.means.groupby("series", sort=False):
        first, *rest = means.sort_values("context_length").to_dict("records")
        last = f", {rest[-1]['score']:.2f} at {rest[-1]['context_length']:,}" if rest else ""
        parts.append(f"{name} scores {first['score']:.2f} at {first['context_length']:,} tokens{last}")
    tasks = int(found.means["tasks"].max())
    return f"Over {tasks} task{'s' * (tasks > 1)} of RULER, {'; '.join(parts)}."
