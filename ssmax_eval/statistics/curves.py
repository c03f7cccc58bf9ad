"""Curves of accuracy over a ladder of lengths: any shape, and those that fall smoothly; the posterior of each kind.

Both are A r: the level A at the shortest length, and the share r of it that is left. *Any shape* is a Markov chain: r starts at 1,
stays or falls by a factor as the length grows, and now and then jumps anywhere, so that a dip that ends is possible: the compound
Poisson case of priors neutral to the right (Doksum 1974, Annals of Probability 2, 183), as Gelfand and Kuo use such priors for dose
and response (1991, Biometrika 78, 657). *Smooth* is r = S(x) / S(x0), S = (1 + (.85^(-1/c) - 1) (x/e)^k)^-c, x0 the shortest
length, e where S is .85, k how steep: Burr's form (1942, Annals of Mathematical Statistics 13, 215), log-logistic at c = 1,
Weibull's at large c. Sums over a grid give the posteriors whole; nothing is drawn.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from .clusters import Floats
from .depth_effects import LEAST, MEANS, bins
from .reach import SHARE

Weights = NDArray[np.float32]
# falls of accuracy in an octave of length: large ones to any share of what is left, small ones of 5% on average; jumps
LARGE, SMALL, JUMPS = 0.4, 3.0, 0.1
SMALLEST = 19.0  # of a small fall: what is left is Beta(19, 1)
LEVELS = 16  # of accuracy at the shortest length
WIDER = 4.0  # variance of the levels that the grid has, in that of their posterior
EDGES = np.append(np.linspace(0, 0.5, 10, endpoint=False), np.linspace(0.5, 1, 31))  # of shares; SHARE is one of them
SHARES = np.append((EDGES[1:] + EDGES[:-1]) / 2, 1.0)
HOLDS = SHARES >= SHARE
STEEP = np.geomspace(0.7, 64, 8)  # k of smooth curves
HEAVY = np.array([1.0, 1e3])  # c of smooth curves: log-logistic, and Weibull's
BEYOND = 2.0  # octaves behind the longest length in which a smooth curve's effective length may be
INSIDE = 2  # effective lengths of smooth curves in each step of the ladder


@dataclass(frozen=True)
class Levels:
    """The levels of the grid, and the weight of each as the prior has it."""

    each: Floats
    weight: Floats

    def closer(self, chance: Floats) -> "Levels":
        """Return levels about where they are likely, given the chance of each."""
        mean = float(chance @ self.each)
        near = np.clip(np.searchsorted(self.each, mean), 1, LEVELS - 1)
        gap = self.each[near] - self.each[near - 1]  # so that a posterior between two levels is not taken for none
        variance = WIDER * (float(chance @ (self.each - mean) ** 2) + gap**2 / 12)
        return levels(mean, min(variance, mean * (1 - mean) / 2))


def levels(mean: float = 2 / 3, variance: float = 4 / 45) -> Levels:
    """Return levels spread as a beta distribution of this mean and variance, at first the prior's, Beta(1, 1/2)."""
    size = mean * (1 - mean) / variance - 1
    spread = beta(mean * size, (1 - mean) * size)
    each = np.clip(spread.ppf((np.arange(LEVELS) + 0.5) / LEVELS), 1e-6, 1 - 1e-6)
    weight = np.exp(beta.logpdf(each, 1, 0.5) - spread.logpdf(each))
    return Levels(each, weight / weight.sum())


@dataclass(frozen=True)
class Posterior:
    """What prompts say of one kind of curves.

    evidence: log of their likelihood. chance: of each length to be the longest that holds. accuracy: chance of each of MEANS, by
    length.
    """

    evidence: float
    chance: Floats
    accuracy: Floats


class AnyShape:
    """The chain; octaves: of a step of the ladder. likely: log likelihoods at MEANS, (lengths, MEANS)."""

    def __init__(self, octaves: float, likely: Floats, grid: Levels) -> None:
        self.step = kernel(octaves)
        self.places = bins(np.clip(np.outer(grid.each, SHARES).ravel(), LEAST, 1 - LEAST))
        self.each = np.exp(likely)[:, self.places].reshape(len(likely), LEVELS, -1).astype(np.float32)
        self.each[0] *= grid.weight[:, None]

    @cached_property
    def marginal(self) -> Weights:
        """The chance of each state at each length, (lengths, states)."""
        one = self.each[:, None]
        weights = (ahead(self.step, one)[0] * back(self.step, one)).reshape(len(one), -1)
        return np.asarray(weights / weights.sum(1, keepdims=True))

    @property
    def mean(self) -> Floats:
        """The mean accuracy at each length."""
        return self.marginal @ MEANS[self.places]

    @property
    def levels(self) -> Floats:
        """The chance of each level."""
        return np.asarray(self.marginal[0].reshape(LEVELS, -1).sum(1, dtype=np.float64))

    @cached_property
    def posterior(self) -> Posterior:
        last, evidence = ahead(self.step, self.each[:, None] * longest_that_holds(len(self.each)))
        chance = last[-1].sum((1, 2), dtype=np.float64)
        return Posterior(evidence, chance / chance.sum(), binned(self.places, self.marginal))

    def answers(self, found: Floats) -> Floats:
        """Return the chance of a right answer, (lengths, effective lengths, depths); found: answers at MEANS."""
        each = self.each[:, None] * longest_that_holds(len(self.each))
        weights = (ahead(self.step, each)[0] * back(self.step, each)).reshape(*each.shape[:2], -1)
        chance = np.maximum(weights.sum(2, keepdims=True), 1e-30)
        return np.asarray(weights @ found.T[self.places].astype(np.float32) / chance, np.float64)


class Smooth:
    """Curves that fall smoothly; lengths: of the ladder. likely: log likelihoods at MEANS, (lengths, MEANS).

    places: in MEANS of each curve, (lengths, levels, curves). weight: chance of each, (levels, curves).
    """

    def __init__(self, lengths: tuple[int, ...], likely: Floats, grid: Levels) -> None:
        shares, self.longest = smooth(lengths)
        self.places = bins(np.clip(grid.each.astype(np.float32)[:, None] * shares[:, None], LEAST, 1 - LEAST))
        told = sum(each[places] for each, places in zip(likely.astype(np.float32), self.places, strict=True))
        weight = np.exp(told - told.max()) * grid.weight[:, None]
        self.evidence = float(told.max() + np.log(weight.sum() / len(self.longest)))
        self.weight = weight / weight.sum()

    @cached_property
    def posterior(self) -> Posterior:
        chance = np.bincount(self.longest, self.weight.sum(0), len(self.places)).astype(float)
        accuracy = [np.bincount(each.ravel(), self.weight.ravel(), len(MEANS)) for each in self.places]
        return Posterior(self.evidence, chance, np.array(accuracy, float))

    def answers(self, found: Floats) -> Floats:
        """Return the chance of a right answer, (lengths, effective lengths, depths); found: answers at MEANS."""
        lengths, start = len(self.places), self.longest * len(MEANS)
        weight = self.weight.ravel()
        out = np.array(
            [
                np.bincount((start + each).ravel(), weight, lengths * len(MEANS)).reshape(lengths, -1)
                for each in self.places
            ]
        )
        return np.asarray(out @ found.T / np.maximum(out.sum(2, keepdims=True), 1e-30))


@cache
def smooth(lengths: tuple[int, ...]) -> tuple[Weights, NDArray[np.int64]]:
    """Return the shares of smooth curves, (lengths, curves), and of each curve the place of the longest length that holds."""
    steps = len(lengths) - 1
    octaves = math.log2(lengths[-1] / lengths[0]) / steps
    places = (np.arange(INSIDE * (steps + math.ceil(BEYOND / octaves))) + 0.5) / INSIDE
    at = 2.0 ** (octaves * np.arange(steps + 1))[:, None, None, None]
    reached = 2.0 ** (octaves * places)[:, None, None]
    k, c = STEEP[:, None], HEAVY

    def left(x: NDArray[np.floating]) -> Floats:  # the log of what is left of all that there was before
        return np.asarray(-c * np.log1p((SHARE ** (-1 / c) - 1) * (x / reached) ** k))

    shares = np.exp(left(at) - left(np.ones(1)))
    shares = shares.reshape(steps + 1, -1)
    return shares.astype(np.float32), (shares >= SHARE).sum(0) - 1


@cache
def kernel(octaves: float) -> Weights:
    """Return the chances of the share after so many octaves, by the share before."""

    def falls(power: float) -> Floats:
        return np.asarray(np.diff(np.minimum(np.append(EDGES, 1.0)[None] / SHARES[:, None], 1.0) ** power, axis=1))

    one = (LARGE * falls(1.0) + SMALL * falls(SMALLEST)) / (LARGE + SMALL)
    rate, power, total = (LARGE + SMALL) * octaves, np.eye(len(SHARES)), np.zeros((len(SHARES),) * 2)
    for number in range(20):  # falls in one step: Poisson
        total += math.exp(-rate) * rate**number / math.factorial(number) * power
        power = power @ one
    jump = -math.expm1(-JUMPS * octaves)
    anywhere = np.append(np.diff(EDGES), 0.0) / 2
    anywhere[-1] += 0.5  # half of them back to the start: a dip that ends
    return ((1 - jump) * total / total.sum(1, keepdims=True) + jump * anywhere).astype(np.float32)


def longest_that_holds(lengths: int) -> NDArray[np.bool_]:
    """Return which shares are possible at each length if the j-th is the longest that holds, (lengths, j, 1, shares).

    It holds, and none after it does.
    """
    place = np.arange(lengths)
    after = (place[None] - place[:, None])[..., None]  # places from a length to the effective length
    return np.where(after > 0, True, np.where(after == 0, HOLDS, ~HOLDS))[:, :, None]


def ahead(step: Weights, each: Weights) -> tuple[Weights, float]:
    """Return the likelihood of the prompts up to each length and of its state, of sum 1 at each length, and the log of what of all.

    each: of each length's prompts, (lengths, restrictions, levels, shares), 0 where a restriction does not allow a share.
    """
    out, scale = np.zeros_like(each), 0.0
    for k in range(len(each)):
        if k:
            out[k] = (out[k - 1] @ step) * each[k]
        else:
            out[0, ..., -1] = each[0, ..., -1]
        total = out[k].sum(dtype=np.float64)
        out[k] /= total
        scale += math.log(total)
    return out, scale


def back(step: Weights, each: Weights) -> Weights:
    """Return the likelihood of the prompts after each length, given its state, 1 at the best; each: as of `ahead`."""
    out = np.ones_like(each)
    for k in reversed(range(len(each) - 1)):
        out[k] = (each[k + 1] * out[k + 1]) @ step.T
        out[k] /= out[k].max()
    return out


def binned(places: NDArray[np.int64], weights: Weights) -> Floats:
    """Return the sums of weights, (lengths, states), at the places of MEANS that the states are in."""
    return np.array([np.bincount(places, each, len(MEANS)) for each in weights])
