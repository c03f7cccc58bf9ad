"""The page's part on training seeds: what holds over several."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....headline import seeds_headline, seeds_sure
from ....report import figures
from ....report.context import Context
from ....report.section import Section, by_task

AFTER = re.compile(r" \((\S+?)( swapped in)?\)$")
LATE = re.compile(r", (\S+) for the last [\d.]+(?: \(\1\))?")  # of a configuration's name


@dataclass(frozen=True)
class Seeds:
    """One task's accuracy over seeds, that of each model, and the differences from a baseline configuration."""

    number: int
    heading: str
    by_length: pd.DataFrame
    each: pd.DataFrame
    compared: pd.DataFrame
    baseline: str


class OverSeeds(Section[Seeds]):
    """What holds over training seeds, where some configuration has two."""

    place = 40

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Seeds]:
        found = [over_seeds(number, heading, part, context) for number, heading, part in by_task(rows)]
        return [each for each in found if each is not None]

    def page(self, found: Sequence[Seeds], context: Context) -> Markup:
        return self.rendered(context, sections=[section(each, context) for each in found])


SECTION = OverSeeds()


def configurations(rows: pd.DataFrame, context: Context) -> dict[str, tuple[str, int]]:
    """Return the configuration and the training seed of every series whose run record tells them, if some configuration has two seeds."""
    found: dict[str, tuple[tuple[str, str], int]] = {}
    for name, training in context.of(rows, "training").items():
        if training and training.get("key") and isinstance(training.get("seed"), int):
            # the same training with another mechanism or RoPE at eval time is another configuration
            model = rows.loc[rows["series"] == name, "model"].iloc[0]
            extra = besides(name.removeprefix(model), str(training.get("attention")))
            found[name] = (training["key"] + extra, training["configuration"] + extra), training["seed"]
    seeds: dict[tuple[str, str], set[int]] = {}
    for configuration, seed in found.values():
        seeds.setdefault(configuration, set()).add(seed)
    if not any(len(each) > 1 for each in seeds.values()):
        return {}
    # two trainings that words do not tell apart are told apart by their keys
    words = [text for _, text in seeds]
    return {
        name: (text if words.count(text) == 1 else f"{text} ({key[:6]})", seed)
        for name, ((key, text), seed) in found.items()
    }


def besides(brackets: str, trained: str) -> str:
    """Return what a series' brackets hold besides the mechanism that its model was trained with, in brackets."""
    parts = [part for part in brackets.strip(" ()").split(", ") if part]
    parts = parts[1:] if parts and parts[0] == trained else parts
    return f" ({', '.join(parts)})" if parts else ""


def headline_over_seeds(rows: pd.DataFrame, context: Context, things: str) -> tuple[str, list[str]] | None:
    """Return the headline over training seeds, and how sure it is, where some configuration has two."""
    known = configurations(rows, context)
    if not known:
        return None
    names = {name for name, _ in known.values()}
    start = next(iter(names)).partition(", ")[0] + ", "  # the recipe's name, where it tells nothing apart
    if all(name.startswith(start) for name in names):
        known = {series: (name.removeprefix(start), seed) for series, (name, seed) in known.items()}
    mechanisms = {*rows["attention"].dropna()}

    def after(found: re.Match[str]) -> str:  # other brackets tell of RoPE, dtype, scoring
        return f" with {found[1]} put in after training" if found[1] in mechanisms else found[0]

    known = {
        series: (AFTER.sub(after, LATE.sub(r" with \1 late in training", name)), seed)
        for series, (name, seed) in known.items()
    }
    baseline = known.get(context.baseline_of(rows), next(iter(known.values())))[0]
    trained = {length for length in context.train_lengths(rows).values() if length}
    compared = statistics.compare_seeds(rows, known, baseline)
    said = seeds_headline(compared, baseline, trained.pop() if len(trained) == 1 else None, things)
    return (said, seeds_sure(compared, baseline)) if said else None


def over_seeds(number: int, heading: str, rows: pd.DataFrame, context: Context) -> Seeds | None:
    """Return the numbers of one task; None where no configuration has two seeds."""
    known = configurations(rows, context)
    by_length = statistics.over_seeds(rows, known) if known else pd.DataFrame()
    if by_length.empty:
        return None
    each = statistics.lengths(rows[rows["series"].isin(list(known))])
    each["configuration"] = each["series"].map(lambda name: known[name][0])
    first = known.get(context.baseline_of(rows), next(iter(known.values())))[0]
    compared = statistics.compare_seeds(rows, known, first)
    return Seeds(number, heading, by_length, each, compared, first)


def section(found: Seeds, context: Context) -> dict[str, Any]:
    """Return what the template shows of one task."""
    by_length, compared = found.by_length, found.compared
    lengths = sorted(by_length["context_length"].unique())
    tables = []
    for name, part in by_length.groupby("configuration", sort=False):
        own = {line["context_length"]: line for line in part.to_dict("records")}
        other = compared[compared["configuration"] == name]
        against = {line["context_length"]: line for line in other.to_dict("records")}
        tables.append(
            {"configuration": name, "own": [own.get(n) for n in lengths], "against": [against.get(n) for n in lengths]}
        )
    return {
        "heading": found.heading,
        "figure": context.drawn(figures.seeds_figure(by_length, found.each), f"seeds-{found.number:02}"),
        "lengths": [int(length) for length in lengths],
        "baseline": found.baseline,
        "tables": tables,
    }
