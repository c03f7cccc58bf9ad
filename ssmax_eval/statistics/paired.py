"""Two series on identical prompts: is the difference real, and how large may it be."""

import math
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from .grids import CONFIDENCE, wilson
from .series import TASK

RESAMPLES = 4999
POWER = 0.8
COUNTS = ["both", "only", "only_baseline", "neither"]
Floats = NDArray[np.float64]


def compare(
    rows: pd.DataFrame, baseline: str, by: tuple[str, ...] = ("context_length", "depth_percent"), seed: int = 0
) -> pd.DataFrame:
    """Compare every series with one of them on the prompts that both have, a line for each series and group of `by`.

    rows: with_series of needle rows; controls, and prompts without a score in either, do not count. pairs, both, only,
    only_baseline, neither: prompts found by both, by one, by none. difference = accuracy - accuracy_baseline, low and high
    its 95% interval: Newcombe's paired score interval (1998, method 10); where prompts share a haystack, the wider of that
    and of a bootstrap over haystacks. p: McNemar's exact test, over haystacks a sign-flip test of their sums; p_holm: over
    the lines of a series and task (Holm). smallest: the smallest difference that so many pairs can see (smallest_difference).
    Series with other prompts (another tokenizer) are compared as independent: shared False, Newcombe's interval, Fisher's test.
    """
    lines = []
    grid = rows[rows["control"].isna() & rows["correct"].notna()]
    for task, part in grid.groupby(TASK, sort=False):
        known = part[part["series"] == baseline]
        for name in dict.fromkeys(part["series"]):
            if name == baseline or known.empty:
                continue
            own = part[part["series"] == name]
            pairs = paired(own, known)
            shared = not pairs.empty
            found = [
                {**dict(zip(by, key, strict=True)), **line}
                for key, line in (of_pairs(pairs, by, seed) if shared else of_strangers(own, known, by))
            ]
            adjusted = holm([line["p"] for line in found])
            head = dict(zip(TASK, task, strict=True)) | {"series": name, "baseline": baseline}
            lines += [{**head, **line, "p_holm": p, "shared": shared} for line, p in zip(found, adjusted, strict=True)]
    columns = [*TASK, "series", "baseline", *by, "pairs", *COUNTS, "accuracy", "accuracy_baseline", "difference"]
    return pd.DataFrame(lines, columns=[*columns, "low", "high", "p", "p_holm", "smallest", "shared"])


def paired(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the prompts that two series share: context_length, depth_percent, cluster, and right, right_baseline (0 or 1)."""
    key = ["context_length", "depth_percent", "prompt_sha256"]
    left = own.assign(cluster=clusters(own), right=own["correct"].astype(float))[[*key, "cluster", "right"]]
    right = other.assign(right_baseline=other["correct"].astype(float))[[*key, "right_baseline"]]
    return left.merge(right, on=key)


def clusters(rows: pd.DataFrame) -> "pd.Series[str]":
    """Name the haystack each prompt's text comes from: its part of a real text, or the prompt itself where text is made for it."""
    if "haystack_block" not in rows:
        return rows["prompt_sha256"]
    block = rows["context_length"].astype(str) + "/" + rows["haystack_block"].astype(str)
    return block.where(rows["haystack_block"].notna(), rows["prompt_sha256"])


def of_pairs(pairs: pd.DataFrame, by: tuple[str, ...], seed: int) -> list[tuple[tuple[float, ...], dict[str, float]]]:
    groups = pairs.groupby(list(by)) if by else [((), pairs)]
    out = []
    for key, part in groups:
        own, other = part["right"].to_numpy(), part["right_baseline"].to_numpy()
        both, only, only_other = ((own * other).sum(), (own * (1 - other)).sum(), ((1 - own) * other).sum())
        counts = [int(both), int(only), int(only_other), int(len(part) - both - only - only_other)]
        low, high = paired_interval(*counts)
        p = mcnemar(counts[1], counts[2])
        if part["cluster"].duplicated().any():
            sums = part.assign(difference=own - other).groupby("cluster")["difference"].agg(["sum", "size"])
            wider = bootstrap(sums["sum"].to_numpy(), sums["size"].to_numpy(dtype=float), seed)
            low, high, p = min(low, wider[0]), max(high, wider[1]), sign_flip(sums["sum"].to_numpy(), seed)
        line = {"pairs": len(part), **dict(zip(COUNTS, counts, strict=True)), "accuracy": own.mean()}
        line |= {"accuracy_baseline": other.mean(), "difference": (own - other).mean(), "low": low, "high": high}
        out.append((key, line | {"p": p, "smallest": smallest_difference(len(part))}))
    return out


def of_strangers(
    own: pd.DataFrame, other: pd.DataFrame, by: tuple[str, ...]
) -> list[tuple[tuple[float, ...], dict[str, float]]]:
    from statsmodels.stats.proportion import confint_proportions_2indep

    sides = [
        {key: part["correct"].astype(float) for key, part in (rows.groupby(list(by)) if by else [((), rows)])}
        for rows in (own, other)
    ]
    out = []
    for key in [key for key in sides[0] if key in sides[1]]:
        (k, n), (k0, n0) = ((int(side[key].sum()), len(side[key])) for side in sides)
        low, high = confint_proportions_2indep(k, n, k0, n0, method="newcomb", compare="diff", alpha=1 - CONFIDENCE)
        p = float(stats.fisher_exact([[k, n - k], [k0, n0 - k0]]).pvalue)
        line = {"pairs": 0, "accuracy": k / n, "accuracy_baseline": k0 / n0, "difference": k / n - k0 / n0}
        out.append((key, line | {"low": float(low), "high": float(high), "p": p, "smallest": math.nan}))
    return out


def paired_interval(both: int, only: int, only_baseline: int, neither: int) -> tuple[float, float]:
    """Return the 95% interval of a difference of paired proportions (Newcombe 1998, Statistics in Medicine 17, method 10)."""
    n = both + only + only_baseline + neither
    right = np.array([both + only, both + only_baseline], dtype=float)
    share = right / n
    low, high = wilson(pd.Series(right), pd.Series([n, n]))
    product = math.prod([right[0], n - right[0], right[1], n - right[1]])
    excess = both * neither - only * only_baseline
    phi = 0.0 if product == 0 else (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(product)
    difference = share[0] - share[1]

    def off(first: float, second: float) -> float:
        return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))

    under = off(share[0] - low[0], high[1] - share[1])
    over = off(high[0] - share[0], share[1] - low[1])
    return float(difference - under), float(difference + over)


def mcnemar(only: int, only_baseline: int) -> float:
    """Return the two-sided p of McNemar's exact test."""
    return 1.0 if only + only_baseline == 0 else float(stats.binomtest(only, only + only_baseline).pvalue)


def bootstrap(sums: Floats, sizes: Floats, seed: int) -> tuple[float, float]:
    """Return the 95% interval of sums over sizes when clusters are drawn again (percentiles)."""
    draws = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def sign_flip(sums: Floats, seed: int) -> float:
    """Return the two-sided p of clusters' sums of differences being as likely of either sign."""
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    result = stats.permutation_test(
        (sums,),
        lambda x, axis: np.abs(x.sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=2 * RESAMPLES + 1,
        rng=np.random.default_rng(seed),
    )
    return float(min(1.0, result.pvalue))


def holm(values: list[float]) -> list[float]:
    """Return p values adjusted for their number (Holm 1979)."""
    if not values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(values, method="holm")[1]]


@cache
def smallest_difference(pairs: int, power: float = POWER) -> float:
    """Return the smallest difference that McNemar's exact test of so many pairs finds, at 95%, with this power; NaN if it finds none.

    The best case, in which no prompt goes the other way: k or more of the pairs have to differ, k the least number with
    2 / 2^k <= .05.
    """
    least = math.ceil(1 - math.log2(1 - CONFIDENCE))
    return float(stats.beta.ppf(power, least, pairs - least + 1)) if pairs >= least else math.nan
