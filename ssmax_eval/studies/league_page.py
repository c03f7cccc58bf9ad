"""The league's page, tables, JSON and words, of its numbers in standings.py."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from .. import statistics
from ..mechanisms.spelling import Attention
from ..models.subjects import RunOptions
from ..report import Findings, context_of, figures
from ..report import written as write_page
from ..report.context import Context
from ..report.context import signed as sign
from ..report.section import Found, Section, Table, records
from ..results import tables
from .league import BASELINES, Entry, League, learned_parameters, probed, trained
from .price import prices
from .standings import Standings, standings


class LeagueSection(Section[Standings]):
    """The league: who reaches how far, beside softmax and SSMax on the same prompts."""

    heading = "the league of attention mechanisms"

    def tables(self, found: Sequence[Standings]) -> Iterator[Table | str]:
        """Yield the sentences and the lines of the league."""
        for each in found:
            yield from sentences(each)
            yield Table("effective context length and accuracy", *reach_lines(each))
            yield Table("loss, attention and cost", *cause_lines(each))

    def summary(self, found: Sequence[Standings]) -> dict[str, Any]:
        return {
            "league": [line for each in found for line in records([each.table])],
            "accuracy_by_length": [line for each in found for line in records([each.by_length])],
            "concordance": [None if math.isnan(each.concordance) else each.concordance for each in found],
        }

    def lead(self, found: Sequence[Standings], context: Context) -> Markup:
        return context.lead("In short", [[*sentences(with_short_names(each))] for each in found], "How sure is that?")

    def page(self, found: Sequence[Standings], context: Context) -> Markup:
        parts = [
            {
                "seeds": each.seeds,
                "prompts": each.prompts,
                "figure": context.drawn(
                    figures.league_figure(each.table, each.by_length, each.families, each.train_length),
                    f"league-{i:02}",
                ),
                "tables": [
                    Table("Effective context length and accuracy", *reach_lines(each)),
                    Table("Loss, attention and cost", *cause_lines(each)),
                ],
                "choices": Table(
                    "The mechanisms",
                    ["mechanism", "formula", "reference", "ours to choose"],
                    [
                        (entry.name, *told(entry))
                        for entry in sorted(each.entries.values(), key=lambda entry: entry.family)
                    ],
                ),
            }
            for i, each in enumerate(map(with_short_names, found), 1)
        ]
        return self.rendered(context, parts=parts)


SECTION = LeagueSection()


def written(
    league: League, models: Path, options: RunOptions, out: Path, figures_folder: Path | None = None, jobs: int = 1
) -> tuple[Findings, Path]:
    """Train and measure what is missing of a league, write its page, and return what was found and the page's path.

    models: the folder of the models' folders. jobs: models to train at a time. Raises UserError.
    """
    folders, failed = trained(league, models, jobs, options.device)
    if failed:
        league = replace(league, entries=[entry for entry in league.entries if entry.name not in failed])
        folders = {label: folders[label] for label in league.configurations}
    runs = probed(league, folders, options)
    first = {label: folders[label] for label, (_, seed) in league.configurations.items() if seed == league.seeds[0]}
    base = next(label for label in first if league.configurations[label][0] == "softmax")
    costs = prices(first, base, league.recipe.train_length, options.output_path / "prices.json")
    rows, context = tables(runs, ("entropy",)), context_of(runs, figures_folder)
    reach = {
        league.configurations[record["model"]["label"]][0]: int(record["attention"]["reach"])
        for record in context.records
        if "reach" in record["attention"]
    }
    of = (rows, league.configurations, league.entries, league.recipe.train_length, learned_parameters(folders), costs)
    numbers = standings(*of, reach, failed)
    findings = Findings([Found(SECTION, [numbers])], [], {})
    return findings, write_page(out, "The league of attention mechanisms", findings, context)


def with_short_names(found: Standings) -> Standings:
    """Return a league whose lines are named without their options where that leaves them different names."""
    short = {name: re.sub(r":[^ ]*", "", name) for name in found.entries}
    counts = Counter(short.values())
    names = {name: each if counts[each] == 1 else name for name, each in short.items()}

    def renamed(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(configuration=table["configuration"].map(names))

    return replace(
        found,
        table=renamed(found.table),
        by_length=renamed(found.by_length),
        entries={names[name]: entry for name, entry in found.entries.items()},
        reach={names.get(name, name): tokens for name, tokens in found.reach.items()},
    )


def told(entry: Entry) -> tuple[str, str, str]:
    """Return what a mechanism says of itself: formula, reference, and what is ours."""
    mechanism = Attention.of(entry.attention).mechanism
    return mechanism.summary, mechanism.reference, mechanism.choices


def sentences(found: Standings) -> Iterator[str]:
    """Yield what the league says, in words; the first sentence says who reaches how far."""
    lines = found.table.to_dict("records")
    learned = [line for line in lines if line["learned"]]
    seeds = "1 training seed" if found.seeds == 1 else f"{found.seeds} training seeds"
    yield first_of(learned, found)
    yield (
        f"{len(lines)} mechanisms and positions, {seeds} of each, all trained on the same batches. At each length every model answers "
        f"{found.prompts} prompts. How far a model reaches: the longest tested length at which it finds 85% of what it finds at "
        f"{found.train_length:,} tokens, the length it was trained at; of several seeds, the geometric mean.{beside(learned)}"
    )
    for baseline in BASELINES:
        known = [line for line in lines if not math.isnan(line[f"vs {baseline} low"])]
        if not known:
            continue
        above = [line["configuration"] for line in known if line[f"vs {baseline} low"] > 0]
        below = [line["configuration"] for line in known if line[f"vs {baseline} high"] < 0]
        others = len(known) - len(above) - len(below)
        parts = [
            f"{len(each)} find {word} ({', '.join(each)})" for word, each in (("more", above), ("less", below)) if each
        ]
        parts += [f"for {others} the 95% interval of the difference holds 0"] if others else []
        yield f"Compared with {baseline} on the same prompts, over all lengths: {'; '.join(parts)}."
    yield "Each of these intervals is 95% by itself: of so many, some exclude 0 by chance."
    if found.seeds == 1:
        yield "One seed gives no interval over seeds: another seed can change any place."
    if unlearned := [line["configuration"] for line in lines if not line["learned"]]:
        yield (
            f"Last, whatever their reach, stand those that find less than {statistics.LEARNED:.0%} at the training length itself: "
            f"{', '.join(unlearned)}."
        )
    for name, reach in found.reach.items():
        yield f"{name} cannot carry anything further than {reach:,} tokens: so far its windows reach, all layers together."
    for name, reason in found.failed.items():
        yield f"{name} is left out: {reason}."
    if not math.isnan(found.concordance):
        yield (
            f"Do the seeds rank the mechanisms alike? Kendall's W = {found.concordance:.2f} (1: all alike, 0: nothing in common), by "
            "accuracy over all lengths."
        )


def first_of(learned: Sequence[Mapping[str, Any]], found: Standings) -> str:
    """Say which lines reach furthest, and how far softmax does: all that hold to the longest length, or else the first."""
    if not learned:
        return "None of them learned the task."
    to_the_end = [line for line in learned if line["beyond"] == line["seeds"]]
    first = to_the_end or [line for line in learned if tokens(line) == tokens(learned[0])]
    names = listed([line["configuration"] for line in first])
    reach, they, find = ("reaches", "it", "finds") if len(first) == 1 else ("reach", "they", "find")
    at = f"{'at least ' if first[0]['beyond'] else ''}{first[0]['effective_length'] / found.train_length:.3g}"
    were = "was" if len(first) == 1 else "were"
    said = (
        f"Of {len(found.table)} attention mechanisms and positions {names} {reach} furthest: in prompts {at} times as long as {they} "
        f"{were} trained on, {they} still {find} 85% of the numbers {they} {find} at {found.train_length:,} tokens"
    )
    softmax = next((line for line in learned if line["configuration"] == "softmax"), None)
    if softmax is not None and softmax not in first:
        said += f"; softmax does up to {softmax['effective_length'] / found.train_length:.2g} times"
    near = rivals(learned)
    return said + (f". By the intervals over seeds {len(near)} others may reach as far." if near else ".")


def listed(names: Sequence[str]) -> str:
    """Write names in a row."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def rivals(learned: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return those whose interval reaches as far as the first one's value: they may be as good."""
    top = learned[0]["effective_length"] if learned else math.nan
    return [line["configuration"] for line in learned if line["effective_length"] < top <= line["high"]]


def beside(learned: Sequence[Mapping[str, Any]]) -> str:
    """Name the rivals of the first."""
    near = rivals(learned)
    return (
        f" These may reach as far as the first, by their 95% intervals over seeds: {', '.join(near)}." if near else ""
    )


def tokens(line: Mapping[str, Any]) -> str:
    """Write an effective length, with a sign where it is a bound; none of what did not learn the task."""
    if not line["learned"]:
        return "–"
    return f"{'≥ ' if line['beyond'] else ''}{line['effective_length']:,.0f}"


def signed(line: Mapping[str, Any], name: str) -> str:
    """Write a difference with its interval."""
    value, low, high = (line[name + end] for end in ("", " low", " high"))
    if math.isnan(value):
        return ""
    return sign(value) + ("" if math.isnan(low) else f" [{sign(low)}, {sign(high)}]")


def spread(line: Mapping[str, Any], name: str) -> str:
    """Write a mean over seeds with the least and the most of them, where they differ."""
    value, least, most = (number(line[name + end]) for end in ("", "_least", "_most"))
    return value if least == most else f"{value} ({least} to {most})"


def number(value: float, digits: int = 2) -> str:
    return "" if pd.isna(value) else f"{value:,.{digits}f}"


def reach_lines(found: Standings) -> tuple[list[str], list[list[str]]]:
    columns = [
        "mechanism",
        "place",
        "family",
        "effective length [95%]",
        "seeds: worst to best",
        "accuracy, all lengths",
    ]
    columns += ["at the training length", *(f"minus {name} [95%]" for name in BASELINES), "places of single seeds"]
    lines = []
    for place, line in enumerate(found.table.to_dict("records"), 1):
        interval = (
            "" if math.isnan(line["low"]) or not line["learned"] else f" [{line['low']:,.0f}, {line['high']:,.0f}]"
        )
        seeds = f"{line['least']:,.0f} to {line['most']:,.0f}" if line["learned"] else "–"
        lines.append(
            [line["configuration"], str(place), line["family"], tokens(line) + interval, seeds]
            + [number(line["accuracy"]), number(line["short_accuracy"])]
            + [signed(line, f"vs {name}") for name in BASELINES]
            + [f"{line['rank_least']} to {line['rank_most']}"]
        )
    return columns, lines


def cause_lines(found: Standings) -> tuple[list[str], list[list[str]]]:
    columns = [
        "mechanism",
        "loss at 1x",
        "loss at 16x",
        "mass at 1x",
        "mass at longest",
        "entropy at 1x",
        "entropy at longest",
    ]
    columns += ["fading exponent", "parameters more than softmax", "step, times softmax", "token, times softmax"]
    lines = []
    for line in found.table.to_dict("records"):
        names = (
            "loss_short",
            "loss_long",
            "mass_short",
            "mass_long",
            "entropy_short",
            "entropy_long",
            "fading_exponent",
        )
        costs = (number(line["parameters"], 0), number(line["step"]), number(line["token"]))
        lines.append([line["configuration"], *(spread(line, name) for name in names), *costs])
    return columns, lines
