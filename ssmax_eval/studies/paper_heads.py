"""The numbers of the paper's study on heads: who holds mass on the answer, and which s they learned."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from scipy import stats

from .. import statistics
from .paper import Model, learned_s


def sorted_heads(by_head: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """Return the mass on the answer of each seed's heads, highest first, mean over seeds place by place."""
    scores = with_model(statistics.head_scores(by_head)).dropna(subset=["mass_answer"])
    scores = scores[scores["seed"].isin(seeds)]
    order = scores.groupby("series")["mass_answer"].rank(ascending=False, method="first")
    placed = scores.assign(place=order.astype(int)).groupby(["letter", "place"])["mass_answer"]
    return (
        placed.agg(["mean", "min", "max", "size"])
        .reset_index()
        .rename(columns={"mean": "mass_answer", "size": "seeds"})
    )


def learned(models: Mapping[Model, str], short: pd.DataFrame) -> pd.DataFrame:
    """Return the learned s of (b)'s heads, and their mass on the answer at the training length."""
    mass = with_model(short).groupby(["letter", "seed", "layer", "head"])["mass_answer"].mean()
    lines = [
        {
            "seed": seed,
            "layer": layer,
            "head": head,
            "s": s,
            "mass_answer": mass.get((letter, seed, layer, head), math.nan),
        }
        for (letter, seed), reference in models.items()
        if letter == "b"
        for layer, heads in enumerate(learned_s(reference))
        for head, s in enumerate(heads)
    ]
    return pd.DataFrame(lines, columns=["seed", "layer", "head", "s", "mass_answer"])


def rank(part: pd.DataFrame) -> float:
    """Return the rank correlation of learned s and mass over a model's heads."""
    return float(stats.spearmanr(part["s"], part["mass_answer"]).statistic)


def of_top_layer(part: pd.DataFrame) -> pd.DataFrame:
    """Return a model's heads of the layer that has the most mass: where the model retrieves."""
    return part[part["layer"] == part.groupby("layer")["mass_answer"].sum().idxmax()]


def within_layers(part: pd.DataFrame) -> pd.DataFrame:
    """Return s and mass of a model's heads as ranks within their layer, so that layers that differ have no part in it."""
    return part.assign(**{name: part.groupby("layer")[name].rank() for name in ("s", "mass_answer")})


def concordance(s: pd.DataFrame) -> float:
    """Return Kendall's W of the seeds' rankings of heads by s: 1 where the same heads have large s with every seed; NaN with one seed."""
    wide = s.pivot(index="seed", columns=["layer", "head"], values="s")
    if len(wide) < 2:
        return math.nan
    ranks = wide.rank(axis=1)
    seeds, heads = ranks.shape
    return float(12 * ((ranks.sum() - ranks.sum().mean()) ** 2).sum() / (seeds**2 * (heads**3 - heads)))


def with_model(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the letter and the seed of its series."""
    parts = [str(name).split("/") for name in table["series"]]
    return table.assign(letter=[letter for letter, _ in parts], seed=[int(seed) for _, seed in parts])
