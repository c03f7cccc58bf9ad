"""Effective context length: how far a series keeps what it can at its shortest length."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .clusters import BY_TRIAL, CONFIDENCE, FEWEST, PLACE, Floats, blocks, clusters, with_plan
from .kinds import on_prompts
from .paired import Beside, beside
from .series import PROMPT, TASK, of_grid

SHARE = 0.85  # of the accuracy at the shortest tested length
RESAMPLES = 4999
Places = NDArray[np.int64]


@on_prompts
def effective_lengths(rows: pd.DataFrame, share: float = SHARE, seed: int = 0) -> pd.DataFrame:
    """Return a line for each series: the longest length at which accuracy is at least `share` of that at the shortest.

    Of the depths that all its lengths have, and of lengths with scores. effective_length in tokens, NaN where nothing is
    found at the shortest length; low and high bound its 95% interval by a bootstrap over prompts (over stretches of text
    where prompts share them), smoothed so that all right or all wrong is not certain. With plan 2 it is over trials, each
    drawn with all its lengths, so that what a trial has in common cancels; fewer than FEWEST give none (NaN to the longest).
    trials: how many, those of overlapping text counted once; 0 with plan 1. beyond, low_beyond, high_beyond: the longest
    length still holds, so the true one is at least this. dips: shorter lengths that do not hold. lengths: how many have
    scores. Only tested lengths count: the interval says nothing between them.
    """
    lines = []
    grid = with_plan(of_grid(rows, [*PROMPT, *PLACE, "correct"]))
    for key, tested in grid.groupby([*TASK, "series"], sort=False):
        part = on_common_depths(tested[tested["correct"].notna()])
        if part.empty:
            continue
        part = part.assign(cluster=clusters(part), right=part["correct"].astype(float))
        by_trial = part["plan"].iloc[0] == BY_TRIAL
        part = part.assign(region=clusters(part, by_length=False))
        units = part["region"].nunique() if by_trial else 0
        lengths = np.array(sorted(part["context_length"].unique()))
        by_length = [part[part["context_length"] == length] for length in lengths]
        accuracy = np.array([each["right"].mean() for each in by_length])
        at, last = int(reached(accuracy[None], share)[0]), len(lengths) - 1
        draws = (drawn_trials if by_trial else drawn)(by_length, seed)
        low, high = bounds(reached(draws[..., 0], share)) if at >= 0 else (-1, -1)
        if by_trial and units < FEWEST:
            low, high = -1, last
        held = accuracy >= share * accuracy[0] - 1e-9
        lines.append(
            dict(zip([*TASK, "series"], key, strict=True))
            | {"shortest": int(lengths[0]), "accuracy": float(accuracy[0]), "longest": int(lengths[-1])}
            | {
                "lengths": len(lengths),
                "prompts": len(part),
                "trials": units,
                "unscored": bool(tested["correct"].isna().any()),
            }
            | {"effective_length": tokens(lengths, at), "beyond": at == last}
            | {"low": tokens(lengths, low), "low_beyond": low == last}
            | {"high": tokens(lengths, high), "high_beyond": high == last}
            | {"dips": [int(length) for length in lengths[: max(at, 0)][~held[: max(at, 0)]]]}
        )
    names = "shortest accuracy longest lengths prompts trials unscored effective_length beyond low low_beyond high high_beyond dips"
    return pd.DataFrame(lines, columns=[*TASK, "series", *names.split()])


@on_prompts
def compare_reach(
    rows: pd.DataFrame | list[Beside], baseline: str, share: float = SHARE, seed: int = 0
) -> pd.DataFrame:
    """Return, for each series but the baseline, how many times further it reaches on identical prompts.

    rows: with_series of needle rows, or what `beside` made of them for this baseline. ratio of effective lengths, with its 95%
    interval low, high from a bootstrap of the pairs, or trials, as in effective_lengths. A length that is only known to be
    beyond the tested ones makes the ratio a bound: `bound` is "", "at least", "at most", or "unknown" where both are, or
    where one finds nothing at its shortest length; low is then 0, high inf.
    """
    lines = []
    for task, name, identical, shared, _ in rows if isinstance(rows, list) else beside(rows, baseline):
        if not shared:
            continue
        pairs = on_common_depths(identical)
        lengths = np.array(sorted(pairs["context_length"].unique()))
        by_length = [pairs[pairs["context_length"] == length] for length in lengths]
        last = len(lengths) - 1
        by_trial = pairs["plan"].iloc[0] == BY_TRIAL
        draws = (drawn_trials if by_trial else drawn)(by_length, seed)
        own, other = (reached(draws[..., i], share) for i in (0, 1))
        means = np.array([[each["right"].mean(), each["right_baseline"].mean()] for each in by_length])
        at, at_other = (int(reached(means[None, :, i], share)[0]) for i in (0, 1))
        nothing = at < 0 or at_other < 0
        bound = {(True, False): "at least", (False, True): "at most", (True, True): "unknown"}.get(
            (at == last, at_other == last), ""
        )
        ratios = lengths[own] / lengths[other]
        quantiles = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
        # a length beyond the tested ones may be any: the interval is open on that side
        low = np.quantile(np.where(other == last, 0.0, ratios), quantiles[0], method="inverted_cdf")
        high = np.quantile(np.where(own == last, np.inf, ratios), quantiles[1], method="inverted_cdf")
        if by_trial and pairs["region"].nunique() < FEWEST:
            low, high = 0.0, np.inf
        lines.append(
            dict(zip(TASK, task, strict=True))
            | {"series": name, "baseline": baseline, "bound": "unknown" if nothing else bound}
            | {"ratio": np.nan if nothing else lengths[at] / lengths[at_other], "low": low, "high": high}
            | {"pairs": len(pairs)}
        )
    return pd.DataFrame(lines, columns=[*TASK, "series", "baseline", "ratio", "bound", "low", "high", "pairs"])


def on_common_depths(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the depths that every length has, or all where there is no such depth."""
    lengths_at = rows.groupby("depth_percent")["context_length"].nunique()
    common = rows["depth_percent"].isin(lengths_at.index[lengths_at == rows["context_length"].nunique()])
    return rows[common] if common.any() and not common.all() else rows


def drawn(by_length: list[pd.DataFrame], seed: int) -> Floats:
    """Return accuracies as they might have come out, (resamples, lengths, 1 or 2): of right and, where it is there, right_baseline.

    Shares of the outcomes are drawn from a Dirichlet around the observed ones, half a prompt added to each of one series'
    (Jeffreys), each stretch of text counted as one prompt.
    """
    rng = np.random.default_rng(seed)
    columns, right = outcomes_of(by_length[0])
    out = []
    for part in by_length:
        outcomes = part[columns].to_numpy()
        shares = np.array([(outcomes == outcome).all(1).mean() for outcome in right])
        concentration = shares * part["cluster"].nunique() + 1 / len(right)
        out.append(rng.dirichlet(concentration, size=RESAMPLES) @ right)
    return np.stack(out, 1)


def drawn_trials(by_length: list[pd.DataFrame], seed: int) -> Floats:
    """Return accuracies as `drawn` does for plan 2, whose trials have prompts of several depths and lengths.

    Each trial is drawn with all its prompts by a weight of its own (the Bayesian bootstrap, Rubin 1981, Annals of Statistics
    9, 130), and half a prompt is added as there, at each length anew. Where trials have one prompt each, a length's accuracy
    is distributed as there.
    """
    rng = np.random.default_rng(seed)
    columns, right = outcomes_of(by_length[0])
    trials = pd.concat([part["region"] for part in by_length]).unique()
    counts = []  # of each length: of each trial, what was found and how many were asked
    for part in by_length:
        grouped = part.groupby("region")
        found = grouped[columns].sum().reindex(trials, fill_value=0.0).to_numpy()
        counts.append((found, grouped.size().reindex(trials, fill_value=0).to_numpy()))
    sums: list[tuple[list[Floats], list[Floats]]] = [([], []) for _ in by_length]
    for size in blocks(RESAMPLES, len(trials)):
        weights = rng.standard_exponential((size, len(trials)))
        for (founds, askeds), (found, asked) in zip(sums, counts, strict=True):
            founds.append(weights @ found)
            askeds.append(weights @ asked)
    out = []
    for part, (founds, askeds), (_, asked) in zip(by_length, sums, counts, strict=True):
        one = np.count_nonzero(asked) / len(part)  # a trial counts as one prompt, however many it has here
        added = rng.gamma(1 / len(right), size=(RESAMPLES, len(right)))
        total = np.concatenate(askeds) * one + added.sum(1)
        out.append((np.concatenate(founds) * one + added @ right) / total[:, None])
    return np.stack(out, 1)


def outcomes_of(part: pd.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
    """Return the columns that say what a prompt's outcome is, and the outcomes that there can be."""
    columns = [name for name in ("right", "right_baseline") if name in part]
    return columns, np.array([[1, 1], [1, 0], [0, 1], [0, 0]])[:: 1 if len(columns) == 2 else 2, : len(columns)]


def reached(accuracy: Floats, share: float) -> Places:
    """Return the index of the longest length that holds, for each line of accuracies (lines, lengths); -1 without any at the shortest."""
    holds = accuracy >= share * accuracy[:, :1] - 1e-9
    last = holds.shape[1] - 1 - holds[:, ::-1].argmax(1)
    return np.where(accuracy[:, 0] > 0, last, -1)


def bounds(found: Places) -> tuple[int, int]:
    quantiles = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(found, quantiles, method="inverted_cdf")
    return int(low), int(high)


def tokens(lengths: NDArray[Any], at: int) -> float:
    return float(lengths[at]) if at >= 0 else float("nan")
