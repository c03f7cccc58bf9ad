"""Effective lengths that were narrowed down: in words, tables, a page and JSON."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from ..models.subjects import RunOptions
from ..probes.by_model import members, training_length
from ..report import Findings, context_of, figures
from ..report import written as write_page
from ..report.context import Context
from ..report.section import Found, Section, Table, records
from ..statistics import SHARE
from .reach import Asked, Reached, in_tokens, reach
from .rounds import fixed_grid, settled


class ReachSection(Section["Told"]):
    """How far each series reads, what it took to know, and what a fixed grid would have taken."""

    heading = "reach"

    def tables(self, found: Sequence["Told"]) -> Iterator[Table | str]:
        """Yield the answer in words, then each series."""
        for each in found:
            yield from sentences(each)
            yield Table("effective context length", *series_lines(each))

    def more_tables(self, found: Sequence["Told"]) -> Iterator[Table]:
        for each in found:
            yield Table("accuracy by context length", *accuracy_lines(each))

    def summary(self, found: Sequence["Told"]) -> dict[str, Any]:
        (each,) = found
        ratio = each.reached.ratio
        return {
            "in_words": [*sentences(each)],
            "precision": each.reached.asked.precision,
            "series": records([each.lines]),
            "ratio": None if ratio is None else {"low": ratio[0], "high": None if math.isinf(ratio[1]) else ratio[1]},
            "rounds": records([each.narrowed]),
            "accuracy": records([each.accuracy]),
        }

    def lead(self, found: Sequence["Told"], context: Context) -> Markup:
        return context.lead("Reach", [[*sentences(each)] for each in found])

    def page(self, found: Sequence["Told"], context: Context) -> Markup:
        (each,) = found
        # the longest length stands for all beyond it
        drawn = each.narrowed.assign(high=each.narrowed["high"].clip(upper=each.reached.asked.ladder.longest))
        figure = context.drawn(figures.reach_figure(drawn, each.accuracy, each.train_lengths, SHARE), "reach")
        return self.rendered(
            context, figure=figure, tables=[t for t in [*self.tables(found), *self.more_tables(found)] if isinstance(t, Table)]
        )  # fmt: skip


class Told(NamedTuple):
    """What was found, as tables: a line a series, a line a round and series, a line a length and series."""

    reached: Reached
    lines: pd.DataFrame
    narrowed: pd.DataFrame
    accuracy: pd.DataFrame
    train_lengths: dict[str, int | None]


SECTION = ReachSection()


def told(reached: Reached) -> Told:
    """Return the tables of what was found."""
    asked, end = reached.asked, reached.end
    lines, accuracy = [], []
    for name, found in end.crossings.items():
        low, high = found.interval
        grid = None if found.finds_nothing else fixed_grid(found)
        known = not found.finds_nothing
        lines.append(
            {"series": name, "effective_length": found.effective_length if known else math.nan}
            | {"low": low if known else math.nan, "high": high if known else math.nan, "beyond": high > found.ladder.lengths[-1]}
            | {"precise": found.precise, "found_at_shortest": float(found.accuracy[0])}
            | {"prompts": int(end.counts[name][1].sum()), "tokens": end.tokens[name]}
            | {"grid_tokens": grid[0] if grid else math.nan, "grid_trials": grid[1] if grid else math.nan}
        )  # fmt: skip
        right, prompts = end.counts[name].sum(2)
        accuracy.append(
            pd.DataFrame(
                {"series": name, "context_length": found.ladder.lengths, "accuracy": found.accuracy, "low": found.low}
                | {"high": found.high, "seen": right / pd.Series(prompts).replace(0, math.nan), "prompts": prompts.astype(int)}
            )
        )  # fmt: skip
    rounds = [
        {"series": name, "round": number, "tokens": each.tokens[name], "effective_length": found.effective_length}
        | {"low": found.interval[0], "high": found.interval[1]}
        for number, each in enumerate(reached.rounds, 1)
        for name, found in each.crossings.items()
    ]
    narrowed = pd.DataFrame(rounds).drop_duplicates(["series", "tokens"], ignore_index=True)
    lengths = {
        name: training_length(model) if members([model]) else None for name, (_, model, _) in asked.series.items()
    }
    return Told(reached, pd.DataFrame(lines), narrowed, pd.concat(accuracy, ignore_index=True), lengths)


def written(asked: Asked, options: RunOptions, out: Path, folder: Path | None = None) -> tuple[Findings, Path]:
    """Narrow effective lengths down, write the page, and return what was found and the page's path. Raises UserError."""
    reached = reach(asked, options)
    context = context_of(reached.runs, folder)
    findings = Findings([Found(SECTION, [told(reached)])], [*asked.series], {})
    return findings, write_page(out, "Reach", findings, context)


def sentences(each: Told) -> Iterator[str]:
    """Yield what was found in words: the comparison of two series first, then each."""
    asked = each.reached.asked
    if each.reached.ratio is not None:
        yield compared(each, *each.reached.ratio)
    for line, (name, found) in zip(each.lines.to_dict("records"), each.reached.end.crossings.items(), strict=True):
        if found.finds_nothing:
            yield f"{name} {in_tokens(found)} ({line['found_at_shortest']:.2f}): it has no effective length."
            continue
        sure = "" if found.precise else f" It is not known to a factor of {asked.precision:g}: {why(each)}."
        yield (
            f"{name} keeps 85% of its score at {asked.ladder.shortest:,} tokens ({line['found_at_shortest']:.2f}) to "
            f"{in_tokens(found)} tokens.{sure} {line['tokens']:,} tokens were read{beside(line) if found.precise else ''}."
        )


def why(each: Told) -> str:
    """Say why the rounds ended before the precision was reached."""
    ratio = each.reached.ratio
    if ratio is not None and settled(ratio, each.reached.asked.band):
        return "the comparison is"
    return f"the limit of {each.reached.asked.most_tokens:,} tokens came first"


def beside(line: dict[Any, Any]) -> str:
    """Say what a fixed grid as precise would take."""
    if math.isnan(line["grid_tokens"]):
        return "; no fixed grid of up to 64 trials would be as precise"
    trials = f"{line['grid_trials']:.0f} trial{'s' if line['grid_trials'] > 1 else ''} a cell"
    return f"; a fixed grid as precise would take about {line['grid_tokens']:,.0f} ({trials})"


def compared(each: Told, low: float, high: float) -> str:
    """Say which of two series reaches further."""
    one, other = each.reached.end.crossings
    band = each.reached.asked.band
    if high <= 1:
        one, other, low, high = other, one, 1 / high, 1 / low if low else math.inf
    if low >= 1:
        size = f"{low:.2f} times as far or more" if math.isinf(high) else f"{low:.2f} to {high:.2f} times as far"
        return f"{one} reaches further than {other}: {size} (95% interval)."
    if low >= 1 / band and high <= band:
        return f"{one} and {other} reach alike: {low:.2f} to {high:.2f} times as far (95% interval), within a factor of {band:g}."
    if low == 0 and math.isinf(high):
        return f"Whether {one} or {other} reaches further cannot be told: both may read beyond the longest length."
    return (
        f"Whether {one} or {other} reaches further is not known: {low:.2f} to {high:.2f} times as far (95% interval)."
    )


def series_lines(each: Told) -> tuple[list[str], list[list[str]]]:
    columns = ["model", "effective context length [95%]", "prompts", "tokens read", "tokens of a fixed grid as precise"]
    return columns, [
        [
            line["series"],
            in_tokens(found),
            f"{line['prompts']:,}",
            f"{line['tokens']:,}",
            ("–" if found.finds_nothing else "more than 64 trials")
            if math.isnan(line["grid_tokens"])
            else f"{line['grid_tokens']:,.0f}",
        ]
        for line, found in zip(each.lines.to_dict("records"), each.reached.end.crossings.values(), strict=True)
    ]


def accuracy_lines(each: Told) -> tuple[list[str], list[list[str]]]:
    columns = ["model", "context length", "accuracy [95%]", "found", "prompts"]
    return columns, [
        [
            line["series"],
            f"{line['context_length']:,}",
            f"{line['accuracy']:.2f} [{line['low']:.2f}, {line['high']:.2f}]",
            "" if math.isnan(line["seen"]) else f"{line['seen']:.2f}",
            str(line["prompts"]),
        ]
        for line in each.accuracy.to_dict("records")
    ]
