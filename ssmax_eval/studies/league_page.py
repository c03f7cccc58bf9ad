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

from ..mechanisms.spelling import Attention
from ..models.subjects import RunOptions
from ..report import Findings, context_of, figures
from ..report import written as write_page
from ..report.context import Context
from ..report.context import signed as sign
from ..report.section import Found, Section, Table, records
from ..results import tables
from .league import BASELINES, FACTORS, Entry, League, learned_parameters, probed, trained
from .league_words import sentences, tokens
from .price import READ_TIMES, STEP_SEQUENCES, TURNS, prices
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
                "documents": each.documents,
                "thetas": ", ".join(f"{factor:g}" for factor in FACTORS),
                "price": {
                    "sequences": STEP_SEQUENCES,
                    "times": READ_TIMES,
                    "turns": TURNS,
                    "length": each.train_length,
                },
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


def signed(line: Mapping[str, Any], name: str) -> str:
    """Write a difference with its interval."""
    value, low, high = (line[name + end] for end in ("", " low", " high"))
    if math.isnan(value):
        return ""
    return sign(value) + ("" if math.isnan(low) else f" [{end_of(low)}, {end_of(high)}]")


def end_of(value: float) -> str:
    """Write an end of an interval; one that only rounds to 0 with as many digits as tell on which side of 0 it lies."""
    return next((text for text in (sign(value, digits) for digits in (2, 3, 4)) if float(text)), sign(value))


def share(line: Mapping[str, Any], name: str) -> str:
    """Write a share with its interval over seeds."""
    low, high = line[f"{name} low"], line[f"{name} high"]
    return number(line[name]) + ("" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]")


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
        "accuracy, all lengths [95%]",
    ]
    columns += [
        "at the training length [95%]",
        *(f"minus {name} [95%]" for name in BASELINES),
        "places of single seeds",
    ]
    lines = []
    for place, line in enumerate(found.table.to_dict("records"), 1):
        interval = (
            "" if math.isnan(line["low"]) or not line["learned"] else f" [{line['low']:,.0f}, {line['high']:,.0f}]"
        )
        seeds = f"{line['least']:,.0f} to {line['most']:,.0f}" if line["learned"] else "–"
        lines.append(
            [line["configuration"], str(place), line["family"], tokens(line) + interval, seeds]
            + [share(line, "accuracy"), share(line, "short_accuracy")]
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
