"""The numbers of the paper's study: a table behind each figure, and the estimates that the ledger of claims judges."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .. import statistics
from ..mechanisms.fading import by_lead, by_length
from ..results import tables
from ..store import Run
from .claims import Estimate, over, paired
from .paper import NAMES, Measured, Model, Paper, log_of, table_of_p
from .paper_heads import learned, of_top_layer, rank, sorted_heads, with_model, within_layers

FAR, BEYOND, HEADS_AT = 8, 11, 8  # times the training length: retrieval, loss, heads
TOP = ["letter", "seed", "trial", "depth_percent", "mass_answer", "verdict", "layer", "head"]
SCALES = ("softmax", "ssmax:s=0.43")  # of Figure 1


@dataclass(frozen=True)
class Numbers:
    """A study in numbers. tables: behind each figure, by its name. estimates: what the claims rest on. prompts: a model and length."""

    paper: Paper
    tables: Mapping[str, pd.DataFrame]
    estimates: Mapping[str, Estimate]
    prompts: int
    documents: int
    seeds: Mapping[str, int]  # of each configuration
    common: Sequence[int]  # seeds that all configurations have: figures 4 to 8 are of these

    @property
    def train_length(self) -> int:
        return self.paper.recipe.train_length


def numbers(
    paper: Paper, models: Mapping[Model, str], found: Measured, prices: Mapping[int, Mapping[str, float]]
) -> Numbers:
    """Return the numbers of a study's runs. prices: of each seed, what (b) takes as a multiple of (a) (studies/price.py)."""
    length = paper.recipe.train_length
    prompts, documents = named(found.needle), named(found.loss)
    at_heads = statistics.heads(prompts[prompts["context_length"] == HEADS_AT * length])
    short = statistics.heads(prompts[prompts["context_length"] == length], ("mass_answer", "entropy"))
    top = with_model(statistics.top_heads(at_heads))
    logs, s = curves(models), learned(models, short)
    p = tables_of_p(models)
    grid = with_model(statistics.cells(prompts))
    # means of unlike seeds do not stand beside each other: what all configurations have
    every = [
        {seed for letter, seed in found.needle if letter == each} for each in {letter for letter, _ in found.needle}
    ]
    common = sorted(set.intersection(*every)) or sorted(set.union(*every))
    scale = statistics.needed_scale(named(found.scale))
    frames = {
        "1-maximum": by_length([*SCALES], length, 100_000),
        "2-learned-p": p,
        "2-needed-scale": with_model(scale)[["seed", "context_length", "best", "low", "high", "prompts", "trials"]],
        "3-lead": by_lead([*SCALES], length, 100_000),
        "4-training-loss": logs[logs["seed"].isin(common)],
        "5-loss-by-position": by_position(documents, common),
        "6-needles": pooled_cells(grid[grid["seed"].isin(common)]),
        "7-heads": sorted_heads(at_heads, common),
        "4-loss-at-end": loss_at_end(logs),
        "found-by-seed": found_by_seed(prompts, length),
        "8-top-heads": top.loc[top["seed"].isin(common), TOP],
        "learned-s": s,
    }
    estimates = {
        **training_losses(logs),
        **of_p(p),
        **of_losses(documents, length),
        **of_needles(prompts, length),
        "mass b-a": difference(units(top, "mass_answer"), "b", "a", "trials", 1.0),
        "s mass": over([rank(part) for _, part in s.groupby("seed")], "seeds", 1.0),
        "s mass in top layer": over([rank(of_top_layer(part)) for _, part in s.groupby("seed")], "seeds", 1.0),
        "s mass in layers": over([rank(within_layers(part)) for _, part in s.groupby("seed")], "seeds", 1.0),
        **of_settings(found, prompts, short, length),
        **{name: over([each[name] - 1 for each in prices.values()], "seeds") for name in ("step", "token")},
    }
    return Numbers(
        paper,
        frames,
        estimates,
        int(prompts.groupby(["series", "context_length"]).size().max()),
        int(documents["document_sha256"].nunique()),
        {letter: sum(model[0] == letter for model in found.needle) for letter in NAMES},
        common,
    )


def named(runs: Mapping[Model, Run]) -> pd.DataFrame:
    """Return the rows of runs, the letter and the seed of their model as their series: `b/0`."""
    names = {run.run_id: f"{letter}/{seed}" for (letter, seed), run in runs.items()}
    rows = statistics.with_series(tables([*runs.values()]))
    return rows.assign(series=rows["run_id"].map(names))


def units(table: pd.DataFrame, value: str, unit: str = "trial") -> pd.DataFrame:
    """Return the mean of a value for each letter, seed and unit (a trial, a document)."""
    found = table.groupby(["letter", "seed", unit])[value].mean().reset_index()
    return found.rename(columns={unit: "unit"})


def difference(table: pd.DataFrame, one: str, other: str, unit: str, most: float = math.inf) -> Estimate:
    """Return how much more a configuration has than another, seed by seed (claims.paired)."""
    mine, theirs = (table[table["letter"] == letter].drop(columns="letter") for letter in (one, other))
    return paired(mine, theirs, str(table.columns[-1]), unit, most)


def curves(models: Mapping[Model, str]) -> pd.DataFrame:
    """Return the training logs: letter, seed, tokens, loss on text."""
    lines = [
        {"letter": letter, "seed": seed, "tokens": line["tokens"], "text_loss": line["text_loss"], "step": line["step"]}
        for (letter, seed), reference in models.items()
        for line in log_of(reference)
    ]
    return pd.DataFrame(lines, columns=["letter", "seed", "tokens", "text_loss", "step"])


def at_end(logs: pd.DataFrame) -> pd.DataFrame:
    """Return the mean loss on text over the last tenth of the steps: letter, seed, unit 0."""
    last = logs[logs["step"] > 0.9 * logs["step"].max()].assign(unit=0)
    return units(last, "text_loss", "unit")


def loss_at_end(logs: pd.DataFrame) -> pd.DataFrame:
    """Return the loss at the end of training minus that of (a) of the same seed: letter, seed, difference."""
    table = at_end(logs)
    own = table[table["letter"] == "a"].set_index("seed")["text_loss"]
    found = table.assign(difference=table["text_loss"] - table["seed"].map(own))
    return found.loc[(found["letter"] != "a") & found["difference"].notna(), ["letter", "seed", "difference"]]


def training_losses(logs: pd.DataFrame) -> dict[str, Estimate]:
    table = at_end(logs)
    return {
        f"loss {one}-{other}": difference(table, one, other, "steps")
        for one, other in (("b", "a"), ("d", "a"), ("d", "b"))
    }


def tables_of_p(models: Mapping[Model, str]) -> pd.DataFrame:
    """Return the learned p_n of each seed, and a1 ln n + a2 fitted to it by least squares.

    Of n from 2 to L - 1: a row that sees one key alone has no gradient, and the last row predicts nothing, so that p stays there
    where it began.
    """
    parts = []
    for (letter, seed), reference in models.items():
        if letter == "p":
            p = np.array(table_of_p(reference))
            n = np.arange(1, len(p) + 1)
            slope, start = np.polyfit(np.log(n[1:-1]), p[1:-1], 1)
            told = {"seed": seed, "n": n, "p": p, "fitted": slope * np.log(n) + start, "a1": slope, "a2": start}
            parts.append(pd.DataFrame(told))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["seed", "n", "p", "fitted", "a1", "a2"])


def of_p(p: pd.DataFrame) -> dict[str, Estimate]:
    """Return the slope a1, and how much more of p_n's variance ln n explains than n does."""
    slopes, more = [], []
    for _, whole in p.groupby("seed"):
        part = whole[(whole["n"] > 1) & (whole["n"] < whole["n"].max())]
        slopes.append(float(part["a1"].iloc[0]))
        explained = [
            np.corrcoef(part["p"].astype(float), x)[0, 1] ** 2
            for x in (np.log(part["n"].astype(float)), part["n"].astype(float))
        ]
        more.append(float(explained[0] - explained[1]))
    return {"p slope": over(slopes, "seeds"), "p ln n": over(more, "seeds")}


def pooled_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Return each configuration's cells over its seeds: accuracy, scored and failed prompts."""
    told = cells.assign(right=cells["accuracy"].fillna(0) * cells["scored"])
    sums = (
        told.groupby(["letter", "context_length", "depth_percent"])[["right", "scored", "failed"]].sum().reset_index()
    )
    return sums.assign(accuracy=(sums["right"] / sums["scored"]).where(sums["scored"] > 0)).drop(columns="right")


def by_position(documents: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """Return the loss of each configuration and bin of positions: the mean over seeds, and the worst and best of them."""
    found = with_model(statistics.loss_by_position(documents))
    found = found[found["seed"].isin(seeds)]
    by = ["letter", "position_start", "position_end"]
    return (
        found.groupby(by)["loss"]
        .agg(["mean", "min", "max", "size"])
        .reset_index()
        .rename(columns={"mean": "loss", "size": "seeds"})
    )


def of_losses(documents: pd.DataFrame, length: int) -> dict[str, Estimate]:
    """Return the differences of loss within the training length and far beyond it, over seeds or a seed's documents."""
    bins = with_model(documents[(documents["measure"] == "position") & documents["nll_sum"].notna()])

    def mean(part: pd.DataFrame) -> pd.DataFrame:
        sums = part.groupby(["letter", "seed", "document_sha256"])[["nll_sum", "tokens"]].sum().reset_index()
        sums = sums.assign(
            unit=sums["document_sha256"], loss=sums["nll_sum"].astype(float) / sums["tokens"].astype(float)
        )
        return sums[["letter", "seed", "unit", "loss"]]

    far, near = mean(bins[bins["position_start"] >= BEYOND * length]), mean(bins[bins["position_end"] <= length])
    return {
        "far loss b-a": difference(far, "b", "a", "documents"),
        "short loss e-a": difference(near, "e", "a", "documents"),
    }


def found_far(prompts: pd.DataFrame, length: int) -> pd.DataFrame:
    """Return the share found far beyond the training length: letter, seed, unit (a trial), right.

    Of the prompts that every model has a score of: what one cannot read would count for it.
    """
    far = prompts[prompts["context_length"] >= FAR * length]
    missing = far["correct"].isna().groupby(far["prompt_sha256"]).transform("any")
    far = with_model(far[~missing])
    return units(far.assign(right=far["correct"].astype(float)), "right")


def found_by_seed(prompts: pd.DataFrame, length: int) -> pd.DataFrame:
    """Return the share that each model finds far beyond the training length: letter, seed, found."""
    found = found_far(prompts, length).groupby(["letter", "seed"])["right"].mean()
    return found.rename("found").reset_index()


def of_needles(prompts: pd.DataFrame, length: int) -> dict[str, Estimate]:
    """Return the differences of what is found far beyond the training length."""
    table = found_far(prompts, length)
    pairs = [each.split("-") for each in ("b-a", "c-b", "d-b", "e-a", "e-b", "f-a", "f-b")]
    own = {letter: table[table["letter"] == letter].groupby("seed")["right"].mean().tolist() for letter in "ab"}
    return {
        **{f"found {one}-{other}": difference(table, one, other, "trials", 1.0) for one, other in pairs},
        **{f"found {letter}": over(each, "seeds") for letter, each in own.items()},
    }


def of_settings(found: Measured, prompts: pd.DataFrame, short: pd.DataFrame, length: int) -> dict[str, Estimate]:
    """Return what (a) does with a scale that is far too large, and with none and a bias of 1, minus what it does as trained."""
    large, zero = named(found.large), named(found.zero)
    own = prompts[(prompts["context_length"] == length) & prompts["series"].str.startswith("a/")]

    def of(rows: pd.DataFrame, value: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
        return value(with_model(rows)).drop(columns="letter")

    def right(rows: pd.DataFrame) -> pd.DataFrame:
        return units(rows.assign(right=rows["correct"].astype(float)), "right")

    def entropy(rows: pd.DataFrame) -> pd.DataFrame:
        return units(rows, "entropy")

    heads = statistics.heads(large, ("mass_answer", "entropy"))
    own_heads = short[short["series"].str.startswith("a/")]
    both = zero.merge(own, on=["series", "prompt_sha256"], suffixes=("", "_own"))
    off = (both["answer_nll"] - both["answer_nll_own"]).abs()
    return {
        "large entropy": paired(of(heads, entropy), of(own_heads, entropy), "entropy", "trials"),
        "large found": paired(of(large, right), of(own, right), "right", "trials", 1.0),
        "zero": Estimate(float(off.max()), math.nan, math.nan, len(off), "prompts"),
    }
