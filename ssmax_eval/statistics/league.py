"""Standings of many configurations over training seeds: how far each reaches, and how it stands to others on the same prompts."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from .clusters import CONFIDENCE
from .grids import lengths
from .heads import fading, heads, top_heads
from .kinds import on_documents, on_prompts
from .losses import loss_by_position
from .reach import effective_lengths
from .seeds import Configurations, compare_seeds, once

LEARNED = 0.9  # of the needles at the shortest length


@on_prompts
def standings(rows: pd.DataFrame, configurations: Configurations, baselines: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return a line for each configuration, the one that reaches furthest first, those that did not learn the task last.

    learned: whether it finds LEARNED at the shortest length, mean over seeds: how far one reaches that finds little says little.
    rows: with_series of needle rows of one task. configurations: {series: (configuration, seed)}. effective_length: the geometric
    mean over seeds of each one's (effective_lengths), in tokens; low, high its 95% interval, Student's t over the seeds'
    logarithms, cut at what there can be; NaN with one seed or equal ones. beyond: how many seeds hold to the longest
    length that they have a score of, so that the mean is at least this. scored: the longest length that all its seeds have a
    score of. nothing: how many find nothing at the shortest length; they count as half of it.
    least, most: the worst and the best seed. behind: by how many doublings of length it reaches less far than the first line, the
    mean over the seeds that both have, with `behind low`, `behind high` likewise. accuracy: the mean over lengths and seeds,
    NaN where a length has no score; short_accuracy: over seeds, at the shortest length; each with ` low`, ` high`, Student's t over
    seeds. rank_least, rank_most: the best and the worst place among the configurations of one seed. `vs NAME` with low and high: the paired
    difference of accuracy from each baseline over all lengths (compare_seeds); NaN where either lacks the score of one.
    """
    configurations = once(configurations)
    reach = effective_lengths(rows[rows["series"].isin(list(configurations))])
    reach[["configuration", "seed"]] = [configurations[name] for name in reach["series"]]
    found = lengths(rows[rows["series"].isin(list(configurations))])
    reach["mean_accuracy"] = reach["series"].map(over_lengths(found))
    reach["tokens"] = reach["effective_length"].fillna(reach["shortest"] / 2)
    reach["learned"] = reach["accuracy"] >= LEARNED
    order = ["learned", "tokens", "mean_accuracy"]
    key = pd.Series(zip(*(reach[name].fillna(-1) for name in order), strict=True), index=reach.index)
    reach["rank"] = [
        1 + int((key[reach["seed"] == seed] > own).sum()) for own, seed in zip(key, reach["seed"], strict=True)
    ]
    lines = []
    for name, part in reach.groupby("configuration", sort=False):
        log = np.log2(part["tokens"].to_numpy(dtype=float))
        low, high = interval(log)
        shortest, longest = float(part["shortest"].min()), float(part["longest"].max())
        lines.append(
            {"configuration": name, "seeds": len(part), "effective_length": float(2 ** log.mean())}
            | {"low": max(2**low, min(shortest, part["tokens"].min())), "high": min(2**high, longest)}
            | {"least": float(part["tokens"].min()), "most": float(part["tokens"].max()), "longest": longest}
            | {
                "beyond": int(part["beyond"].sum()),
                "scored": int(part["longest"].min()),
                "nothing": int(part["effective_length"].isna().sum()),
            }
            | of_seeds("accuracy", part["mean_accuracy"])
            | of_seeds("short_accuracy", part["accuracy"])
            | {"rank_least": int(part["rank"].min()), "rank_most": int(part["rank"].max())}
        )
    table = pd.DataFrame(lines)
    table.insert(2, "learned", table["short_accuracy"] >= LEARNED)
    table = table.sort_values(["learned", "effective_length", "accuracy"], ascending=False, kind="stable")
    seeds = reach.assign(log=np.log2(reach["tokens"])).pivot_table(index="seed", columns="configuration", values="log")
    behind = {name: seeds[table["configuration"].iloc[0]] - seeds[name] for name in table["configuration"]}
    table["behind"] = [float(behind[name].mean()) for name in table["configuration"]]
    ends = [interval(behind[name].dropna().to_numpy()) for name in table["configuration"]]
    table["behind low"], table["behind high"] = ([each[i] for each in ends] for i in (0, 1))
    whole = set(table.loc[table["accuracy"].notna(), "configuration"])  # that have a score of every length
    for baseline in baselines:
        against = compare_seeds(rows, configurations, baseline, by=()).set_index("configuration")
        for column, name in (("difference", ""), ("low", " low"), ("high", " high")):
            told = against[column] if baseline in whole else against[column].iloc[:0]
            table[f"vs {baseline}{name}"] = table["configuration"].map(told).where(table["configuration"].isin(whole))
    return table.reset_index(drop=True)


def over_lengths(found: pd.DataFrame) -> "pd.Series[float]":
    """Return each series' mean accuracy over the lengths at which any has a score; NaN of a series that lacks one of them."""
    wide = found.set_index(["series", "context_length"])["accuracy"].unstack()
    return wide.dropna(axis=1, how="all").mean(axis=1, skipna=False)


def of_seeds(name: str, shares: "pd.Series[float]") -> dict[str, float]:
    """Return the mean of a share over seeds, with its 95% interval cut at 0 and 1."""
    low, high = interval(shares.to_numpy(dtype=float))
    cut = {f"{name} low": max(low, 0.0), f"{name} high": min(high, 1.0)} if low == low else {}
    return {name: float(shares.mean()), f"{name} low": math.nan, f"{name} high": math.nan} | cut


def interval(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> tuple[float, float]:
    """Return the 95% interval of a mean, Student's t; NaN for one value or equal ones."""
    if len(values) < 2 or np.ptp(values) == 0:
        return math.nan, math.nan
    half = stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(values.mean() - half), float(values.mean() + half)


@on_prompts
def concordance(rows: pd.DataFrame, configurations: Configurations) -> float:
    """Return Kendall's W over seeds of the configurations' mean accuracies: 1 where all rank alike, 0 with nothing in common.

    Of the configurations that have all seeds; NaN with fewer than two seeds or three such configurations. Ties get their mean
    rank, and are corrected for.
    """
    configurations = once(configurations)
    found = over_lengths(lengths(rows[rows["series"].isin(list(configurations))]))
    keys = pd.DataFrame([configurations[name] for name in found.index], columns=["configuration", "seed"])
    table = keys.assign(accuracy=found.to_numpy()).pivot(index="configuration", columns="seed", values="accuracy")
    table = table.dropna()
    count, seeds = table.shape
    if count < 3 or seeds < 2:
        return math.nan
    ranks = table.rank()
    spread = float(((ranks.sum(axis=1) - seeds * (count + 1) / 2) ** 2).sum())
    ties = sum(float((sizes**3 - sizes).sum()) for sizes in (table[seed].value_counts() for seed in table))
    most = seeds**2 * (count**3 - count) - seeds * ties
    return 12 * spread / most if most else math.nan


@on_prompts
def attention_standings(rows: pd.DataFrame, configurations: Configurations) -> pd.DataFrame:
    """Return a line for each configuration with attention masses: what its strongest head does, mean over seeds.

    mass_short, mass_long: at the shortest and the longest length, the mass on the answer of each prompt's highest head, as a
    share of its row's sum; NaN where weights can be negative, as there is no whole to have a share of. entropy_short,
    entropy_long: that head's entropy in nats. fading_exponent: of the head that holds most at the shortest length (fading). All
    NaN where they are not defined. Each with `_least` and `_most`, of its seeds.
    """
    lines = []
    for name, (configuration, _) in once(configurations).items():
        by_head = heads(rows[rows["series"] == name], ("mass_answer", "log_odds", "entropy", "row_sum"))
        by_head["mass_answer"] = by_head["mass_answer"] / by_head["row_sum"].fillna(1.0).where(
            by_head["entropy"].notna()
        )
        if by_head["mass_answer"].isna().all():
            continue
        top = top_heads(by_head)
        ends = [top[top["context_length"] == at] for at in (top["context_length"].min(), top["context_length"].max())]
        short = by_head[by_head["context_length"] == by_head["context_length"].min()]
        layer, head = short.groupby(["layer", "head"])["mass_answer"].mean().idxmax()
        strongest = by_head[(by_head["layer"] == layer) & (by_head["head"] == head)]
        lines.append(
            {"configuration": configuration}
            | {f"mass_{end}": part["mass_answer"].mean() for end, part in zip(("short", "long"), ends, strict=True)}
            | {f"entropy_{end}": part["entropy"].mean() for end, part in zip(("short", "long"), ends, strict=True)}
            | {"fading_exponent": float(fading(strongest)["b"].iloc[0])}
        )
    names = ["configuration", "mass_short", "mass_long", "entropy_short", "entropy_long", "fading_exponent"]
    return with_ends(pd.DataFrame(lines, columns=names))


def with_ends(values: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each configuration's seeds, and beside each the least and the most of them."""
    grouped = values.groupby("configuration", sort=False)
    ends = [grouped.min().add_suffix("_least"), grouped.max().add_suffix("_most")]
    return grouped.mean().join(ends).reset_index()


@on_documents
def loss_standings(rows: pd.DataFrame, configurations: Configurations, train_length: int) -> pd.DataFrame:
    """Return a line for each configuration, means over seeds, each with `_least` and `_most` of them.

    loss_short: in the last bin of positions within train_length; loss_long: in the last bin of all. Nats a token.
    """
    configurations = once(configurations)
    table = loss_by_position(rows[rows["series"].isin(list(configurations))])
    table["configuration"] = [configurations[name][0] for name in table["series"]]
    within = table.loc[table["position_end"] <= train_length, "position_end"]
    ends = {"loss_short": within.max(), "loss_long": table["position_end"].max()}
    losses = table.groupby(["configuration", "series", "position_end"], sort=False)["loss"].mean().unstack()
    found = pd.DataFrame({name: losses.get(end, math.nan) for name, end in ends.items()}, index=losses.index)
    return with_ends(found.reset_index("series", drop=True).reset_index())
