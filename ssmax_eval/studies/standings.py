"""The league's numbers: its lines, furthest first, what is found at each length, and how much the seeds agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from .. import statistics
from .league import BASELINES, Entry


@dataclass(frozen=True)
class Standings:
    """A league's lines, furthest first, what is found at each length, and how much the seeds agree.

    prompts, documents: of each seed, prompts at each length.
    """

    table: pd.DataFrame
    by_length: pd.DataFrame
    entries: Mapping[str, Entry]
    concordance: float
    train_length: int
    seeds: int
    reach: Mapping[str, int]
    failed: Mapping[str, str]
    prompts: int
    documents: int

    @property
    def families(self) -> dict[str, str]:
        return {name: entry.family for name, entry in self.entries.items()}


def standings(
    rows: pd.DataFrame,
    configurations: Mapping[str, tuple[str, int]],
    entries: Sequence[Entry],
    train_length: int,
    parameters: Mapping[str, int],
    prices: Mapping[str, Mapping[str, float]],
    reach: Mapping[str, int] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Standings:
    """Return the numbers of a league.

    rows: of its needle and loss runs. configurations: each model's entry and seed, by its label. parameters, prices: of each
    model, by label. reach: of entries whose mechanism carries nothing further, in tokens. failed: why entries are not in it. What
    was read at several thetas counts at the one that finds most in each cell, which flatters it; its loss is at theta as trained.
    """
    prompts = statistics.with_series(statistics.of_prompts(rows))
    best = statistics.best_theta(prompts)
    if len(best):
        prompts = pd.concat([prompts[~prompts["subject"].isin(set(best["subject"]))], best], ignore_index=True)
    documents = statistics.with_series(statistics.of_documents(rows))
    documents = documents[documents["rope"] == "as trained"]
    named = by_series(prompts, configurations)
    table = statistics.standings(prompts, named, BASELINES)
    table = table.merge(statistics.attention_standings(prompts, named), on="configuration", how="left")
    losses = statistics.loss_standings(documents, by_series(documents, configurations), train_length)
    table = table.merge(losses, on="configuration", how="left")
    softmax = {seed: parameters[label] for label, (name, seed) in configurations.items() if name == "softmax"}
    for column in ("step", "token"):
        table[column] = table["configuration"].map(means(configurations, {k: v[column] for k, v in prices.items()}))
    more = {label: parameters[label] - softmax[seed] for label, (_, seed) in configurations.items()}
    table["parameters"] = table["configuration"].map(means(configurations, more))
    by_name = {entry.name: entry for entry in entries}
    table.insert(1, "family", [by_name[name].family for name in table["configuration"]])
    return Standings(
        table,
        statistics.over_seeds(prompts, named),
        by_name,
        statistics.concordance(prompts, named),
        train_length,
        int(table["seeds"].max()),
        reach or {},
        failed or {},
        int(prompts.groupby(["series", "context_length"]).size().max()),
        int(documents.groupby("series")["document_sha256"].nunique().max()),
    )


def by_series(rows: pd.DataFrame, configurations: Mapping[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """Return the entry and seed of each series, whose rows tell its model."""
    models = rows.drop_duplicates("series").set_index("series")["model"]
    return {str(series): configurations[model] for series, model in models.items() if model in configurations}


def means(configurations: Mapping[str, tuple[str, int]], values: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of models' values for each entry."""
    found: dict[str, list[float]] = {}
    for label, value in values.items():
        found.setdefault(configurations[label][0], []).append(value)
    return {name: sum(each) / len(each) for name, each in found.items()}
