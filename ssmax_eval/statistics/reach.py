"""Effective context length: how far a series keeps what it can at its shortest length."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .grids import CONFIDENCE
from .paired import clusters, paired
from .series import TASK

SHARE = 0.85  # of the accuracy at the shortest tested length
RESAMPLES = 1999
Floats = NDArray[np.float64]


def effective_lengths(rows: pd.DataFrame, share: float = SHARE, seed: int = 0) -> pd.DataFrame:
    """Return a line for each series: the longest tested length at which accuracy is at least `share` of that at the shortest.

    effective_length in tokens, NaN where nothing is found at the shortest length; low and high bound its 95% interval, by a
    bootstrap over prompts (over haystacks where prompts share one). beyond, low_beyond, high_beyond: the longest tested
    length still holds, so the true one is at least this. All lengths are tested ones: the interval says nothing between them.
    """
    lines = []
    grid = rows[rows["control"].isna() & rows["correct"].notna()]
    for key, part in grid.groupby([*TASK, "series"], sort=False):
        part = part.assign(right=part["correct"].astype(float), cluster=clusters(part))
        lengths = np.array(sorted(part["context_length"].unique()))
        drawn = resampled([part[part["context_length"] == length] for length in lengths], ["right"], seed)[..., 0]
        accuracy = part.groupby("context_length")["right"].mean().to_numpy()
        at, last = reached(accuracy[None], share)[0], len(lengths) - 1
        low, high = bounds(reached(drawn, share))
        lines.append(
            dict(zip([*TASK, "series"], key, strict=True))
            | {"shortest": int(lengths[0]), "accuracy": accuracy[0], "longest": int(lengths[-1]), "prompts": len(part)}
            | {"effective_length": tokens(lengths, at), "beyond": at == last}
            | {"low": tokens(lengths, low), "low_beyond": low == last}
            | {"high": tokens(lengths, high), "high_beyond": high == last}
        )
    names = "shortest accuracy longest prompts effective_length beyond low low_beyond high high_beyond".split()
    return pd.DataFrame(lines, columns=[*TASK, "series", *names])


def compare_reach(rows: pd.DataFrame, baseline: str, share: float = SHARE, seed: int = 0) -> pd.DataFrame:
    """Return, for each series but the baseline, how many times further it reaches on identical prompts.

    ratio of effective lengths with its 95% interval low, high (bootstrap of the pairs). A length that is only known to be
    beyond the tested ones makes the ratio a bound: `bound` is "", "at least", "at most", or "unknown" where both are, or
    where one finds nothing at its shortest length.
    """
    lines = []
    grid = rows[rows["control"].isna() & rows["correct"].notna()]
    for task, part in grid.groupby(TASK, sort=False):
        known = part[part["series"] == baseline]
        for name in dict.fromkeys(part["series"]):
            pairs = paired(part[part["series"] == name], known)
            if name == baseline or pairs.empty:
                continue
            lengths = np.array(sorted(pairs["context_length"].unique()))
            by_length = [pairs[pairs["context_length"] == length] for length in lengths]
            drawn = resampled(by_length, ["right", "right_baseline"], seed)
            own, other = (reached(drawn[..., i], share) for i in (0, 1))
            means = np.array([[each["right"].mean(), each["right_baseline"].mean()] for each in by_length])
            at, at_other = (reached(means[None, :, i], share)[0] for i in (0, 1))
            last = len(lengths) - 1
            nothing = at < 0 or at_other < 0
            bound = {(True, False): "at least", (False, True): "at most", (True, True): "unknown"}.get(
                (at == last, at_other == last), ""
            )
            usable = (own >= 0) & (other >= 0)
            ratios = lengths[own[usable]] / lengths[other[usable]]
            quantiles = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
            low, high = np.quantile(ratios, quantiles, method="inverted_cdf") if len(ratios) else (np.nan, np.nan)
            lines.append(
                dict(zip(TASK, task, strict=True))
                | {"series": name, "baseline": baseline, "bound": "unknown" if nothing else bound}
                | {"ratio": np.nan if nothing else lengths[at] / lengths[at_other], "low": low, "high": high}
                | {"pairs": len(pairs)}
            )
    return pd.DataFrame(lines, columns=[*TASK, "series", "baseline", "ratio", "bound", "low", "high", "pairs"])


def resampled(by_length: list[pd.DataFrame], columns: list[str], seed: int) -> Floats:
    """Return the means of columns at each length when clusters are drawn again: (resamples, lengths, columns)."""
    rng = np.random.default_rng(seed)
    out = []
    for part in by_length:
        by_cluster = part.groupby("cluster", sort=True)[columns].agg("sum").to_numpy(), part.groupby("cluster").size()
        sums, sizes = by_cluster[0], by_cluster[1].to_numpy()
        # how often each cluster is drawn: the same as drawing them one by one, without holding the draws
        times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
        out.append(times @ sums / (times @ sizes)[:, None])
    return np.stack(out, 1)


def reached(accuracy: Floats, share: float) -> NDArray[np.int64]:
    """Return the index of the longest length that holds, for each line of accuracies (lines, lengths); -1 without any at the shortest."""
    holds = accuracy >= share * accuracy[:, :1] - 1e-9
    last = holds.shape[1] - 1 - holds[:, ::-1].argmax(1)
    return np.where(accuracy[:, 0] > 0, last, -1)


def bounds(found: NDArray[np.int64]) -> tuple[int, int]:
    quantiles = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(found, quantiles, method="inverted_cdf")
    return int(low), int(high)


def tokens(lengths: NDArray[np.int64], at: int) -> float:
    return float(lengths[at]) if at >= 0 else float("nan")
