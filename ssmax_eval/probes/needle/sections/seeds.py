"""The page's part on training seeds: what holds over several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, by_task


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
            extra = name.removeprefix(model).removeprefix(f", {training.get('attention')}")
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
