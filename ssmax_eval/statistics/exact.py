"""Tests and intervals of paired counts and of clusters' sums: numbers in, numbers out."""

import math
from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .clusters import BLOCK, CONFIDENCE, Floats, blocks
from .grids import wilson

RESAMPLES = 4999
POWER = 0.8


@cache
def paired_interval(both: float, only: float, only_baseline: float, neither: float) -> tuple[float, float]:
    """Return the 95% interval of a difference of paired proportions (Newcombe 1998, Statistics in Medicine 17, method 10).

    Counts need not be whole numbers: pairs that are worth fewer than they are count as a part of one each.
    """
    n = both + only + only_baseline + neither
    right = np.array([both + only, both + only_baseline], dtype=float)
    share = right / n
    low, high = wilson(right, np.array([n, n]))
    phi = correlation(both, only, only_baseline, neither)
    difference = share[0] - share[1]

    def off(first: float, second: float) -> float:
        return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))

    under = off(share[0] - low[0], high[1] - share[1])
    over = off(high[0] - share[0], share[1] - low[1])
    return float(difference - under), float(difference + over)


def correlation(both: float, only: float, only_baseline: float, neither: float) -> float:
    """Return phi of two paired proportions, with Newcombe's correction for continuity where it is positive."""
    n, right, right_baseline = both + only + only_baseline + neither, both + only, both + only_baseline
    product = math.prod([right, n - right, right_baseline, n - right_baseline])
    excess = both * neither - only * only_baseline
    return 0.0 if product == 0 else (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(product)


@cache
def mcnemar(only: int, only_baseline: int) -> float:
    """Return the two-sided p of McNemar's exact test."""
    return 1.0 if only + only_baseline == 0 else float(stats.binomtest(only, only + only_baseline).pvalue)


def bootstrap(sums: Floats, sizes: Floats, seed: int) -> tuple[float, float]:
    """Return the 95% interval of sums over sizes when clusters are drawn again (percentiles)."""
    found = np.concatenate([(times @ sums) / (times @ sizes) for times in drawn_again(len(sums), seed)])
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def drawn_again(count: int, seed: int) -> Iterator[Floats]:
    """Yield, in blocks of resamples, how often each of `count` clusters is drawn: as if drawn one by one, without holding the draws."""
    if count * RESAMPLES <= BLOCK // 2:
        yield few_drawn_again(count, seed).astype(float)
        return
    rng = np.random.default_rng(seed)
    for size in blocks(RESAMPLES, count):
        yield rng.multinomial(count, np.full(count, 1 / count), size=size).astype(float)


@lru_cache(maxsize=160)  # the cells of a grid have about as many clusters each, and the same seed
def few_drawn_again(count: int, seed: int) -> NDArray[np.uint8]:
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    assert times.max() < 256
    return times.astype(np.uint8)


def sign_flip(sums: Floats) -> float:
    """Return the two-sided exact p of clusters' whole-numbered sums of differences being as likely of either sign."""
    steps = [int(step) for step in np.abs(np.rint(sums)) if step]
    chance = np.ones(1)  # of each total, from -sum(steps so far) on
    for step in steps:
        grown = np.zeros(len(chance) + 2 * step)
        grown[: len(chance)] += chance / 2
        grown[2 * step :] += chance / 2
        chance = grown
    totals = np.arange(len(chance)) - sum(steps)
    return float(min(1.0, chance[np.abs(totals) >= abs(round(float(np.sum(sums))))].sum()))


def holm(values: list[float]) -> list[float]:
    """Return p values adjusted for their number (Holm 1979)."""
    # statsmodels' multipletests does this and then collects garbage, which takes seconds beside many rows
    p = np.array(values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(each) for each in adjusted]


@cache
def smallest_difference(units: int, level: float = 1 - CONFIDENCE, power: float = POWER, prompts: float = 1.0) -> float:
    """Return the smallest difference that an exact sign test of so many units finds at this level and power; NaN if it finds none.

    units: pairs of prompts, or trials of so many `prompts` each. The best case, in which nothing goes the other way: k or more of
    the units have to differ, k the least number with 2 / 2^k <= level, and a trial differs when one of its prompts does, each on
    its own. Where prompts of a trial differ together, a difference has to be larger.
    """
    least = math.ceil(1 - math.log2(level) - 1e-9)
    if units < least:
        return math.nan
    return 1 - (1 - float(stats.beta.ppf(power, least, units - least + 1))) ** (1 / prompts)
