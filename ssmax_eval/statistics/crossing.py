"""The effective context length between tested lengths: a posterior over a ladder of lengths, and where the next prompt tells most.

Accuracy by length is a Markov chain on a grid: the level A at the shortest length, A r at the others, where r starts at 1, stays or
falls by a factor as the length grows, and now and then jumps anywhere, so that a dip that ends is possible. No form of the curve
is assumed: it is the compound Poisson case of priors neutral to the right (Doksum 1974, Annals of Probability 2, 183), as Gelfand
and Kuo use such priors for dose and response (1991, Biometrika 78, 657). Sums forward and backward give the posterior whole;
nothing is drawn. Depths differ by an effect each on the logit; the chain is of their mean. Prompts of one cell scatter more than
independent ones (beta-binomial), so a cell asked again and again tells less and less. The next prompts are those that are expected
to reduce the entropy of the effective length most, per token (Kontsevich and Tyler 1999, Vision Research 39, 2729, who do it for
threshold and slope; QUEST, Watson and Pelli 1983, Perception and Psychophysics 33, 113; nuisance parameters beside the one that is
wanted: Prins 2013, Journal of Vision 13(7):3).
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, expit, logit
from scipy.stats import beta

from .clusters import CONFIDENCE, Floats
from .reach import SHARE

# falls of accuracy in an octave of length: large ones to any share of what is left, small ones of 5% on average; jumps
LARGE, SMALL, JUMPS = 0.4, 3.0, 0.1
SMALLEST = 19.0  # of a small fall: what is left is Beta(19, 1)
LEVELS = 24  # of accuracy at the shortest length, each as likely: Beta(1, 1/2)
STEPS = 40  # of the share of it that is left; SHARE is an edge between two of them
SCATTER = 60.0  # of a cell: that many prompts of a beta prior
EFFECT = 3.0  # standard deviation of a depth's effect, logits
LEAST = 0.003  # chance of a right answer, and of a wrong one, whatever the curve: one slip must not decide
SWEEPS = 3  # in which curve and effects are fitted in turn
# of the posterior in a 95% interval: to stop when it is narrow costs coverage (benchmarks/reach_simulation.py)
MASS = 0.98
TOO_LITTLE = 0.2  # accuracy at the shortest length below which 85% of it means nothing
SCALE = np.linspace(-14.0, 14.0, 561)  # logits, at which likelihoods are tabulated
Counts = NDArray[np.float64]  # (2, lengths, depths): right answers, and prompts


@dataclass(frozen=True)
class Ladder:
    """The lengths that can be asked, even in ln length from the shortest to the longest, and the depths.

    precision: the factor within which the effective length is wanted, above 1; a step of the ladder is at most that.
    """

    shortest: int
    longest: int
    depths: tuple[float, ...]
    precision: float

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        steps = math.ceil(math.log(self.longest / self.shortest) / math.log(self.precision) - 1e-9)
        return tuple(round(self.shortest * (self.longest / self.shortest) ** (k / steps)) for k in range(steps + 1))

    @property
    def octaves(self) -> float:
        """The octaves of one step."""
        return math.log2(self.longest / self.shortest) / (len(self.lengths) - 1)

    @property
    def edges(self) -> Floats:
        """The ends of the cells that the effective length can be in, tokens; the last cell is all beyond the longest."""
        return np.array([*self.lengths, math.inf])

    def nothing(self) -> Counts:
        """Return counts of no prompts."""
        return np.zeros((2, len(self.lengths), len(self.depths)))


@dataclass(frozen=True)
class States:
    """The grid of the chain: shares r, which of them hold, and accuracy A r of each level and share, one after another."""

    shares: Floats
    holds: NDArray[np.bool_]
    accuracy: Floats


@cache
def states() -> States:
    levels = beta.ppf((np.arange(LEVELS) + 0.5) / LEVELS, 1, 0.5)
    shares = np.append((np.arange(STEPS) + 0.5) / STEPS, 1.0)
    return States(shares, shares >= SHARE, np.clip(np.outer(levels, shares).ravel(), LEAST, 1 - LEAST))


@cache
def kernel(octaves: float) -> NDArray[np.float32]:
    """Return the chances of the share after so many octaves, by the share before."""
    shares = states().shares
    edges = np.append(np.arange(STEPS + 1) / STEPS, 1.0)

    def falls(power: float) -> Floats:
        return np.asarray(np.diff(np.minimum(edges[None] / shares[:, None], 1.0) ** power, axis=1))

    one = (LARGE * falls(1.0) + SMALL * falls(SMALLEST)) / (LARGE + SMALL)
    rate, power, total = (LARGE + SMALL) * octaves, np.eye(len(shares)), np.zeros((len(shares),) * 2)
    for number in range(20):  # falls in one step: Poisson
        total += math.exp(-rate) * rate**number / math.factorial(number) * power
        power = power @ one
    jump = -math.expm1(-JUMPS * octaves)
    anywhere = np.full(len(shares), 0.5 / len(shares))
    anywhere[-1] += 0.5  # half of them back to the start: a dip that ends
    return ((1 - jump) * total / total.sum(1, keepdims=True) + jump * anywhere).astype(np.float32)


@dataclass(frozen=True)
class Crossing:
    """What is known of the effective length.

    chance: of each cell between the ladder's edges. accuracy, low, high: of each length, mean over depths, with its 95% interval.
    information: nats about the effective length that the next prompt is expected to give, (lengths, depths).
    """

    ladder: Ladder
    chance: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    information: Floats

    def cell(self, quantile: float) -> int:
        """Return the cell in which a quantile of the effective length lies."""
        return min(int(np.searchsorted(np.cumsum(self.chance), quantile)), len(self.chance) - 1)

    @property
    def effective_length(self) -> float:
        """The median, in tokens; the longest length where it is beyond."""
        place = self.cell(0.5)
        edges = self.ladder.edges
        return float(min(math.sqrt(edges[place] * edges[place + 1]), self.ladder.longest))

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval, tokens; infinite where the longest length may still hold."""
        low, high = self.cell((1 - MASS) / 2), self.cell((1 + MASS) / 2)
        return float(self.ladder.edges[low]), float(self.ladder.edges[high + 1])

    @property
    def spread(self) -> float:
        """The upper end of the interval over the lower, the longest length standing for all beyond it."""
        low, high = self.interval
        return min(high, self.ladder.longest) / low

    @property
    def precise(self) -> bool:
        """Whether both ends are within the precision of the interval's middle."""
        return self.spread <= self.ladder.precision**2 * (1 + 1e-9)

    @property
    def finds_nothing(self) -> bool:
        """Whether so little is found at the shortest length, for sure, that no share of it can be looked for."""
        return bool(self.high[0] < TOO_LITTLE)

    def against(self, other: "Crossing") -> tuple[float, float]:
        """Return the 95% interval of how many times further this reaches than another of the same ladder.

        Each lies anywhere in its cell; beyond the longest length any may be.
        """
        edges, chance = self.ladder.edges, np.outer(self.chance, other.chance).ravel()
        return (
            quantile(np.divide.outer(edges[:-1], edges[1:]).ravel(), chance, (1 - MASS) / 2),
            quantile(np.divide.outer(edges[1:], edges[:-1]).ravel(), chance, (1 + MASS) / 2),
        )

    def next_cells(self, depths: int) -> tuple[int, tuple[int, ...]]:
        """Return the place of the length whose best depths tell most per token, and the places of these; of equals the first."""
        each = self.information / np.array(self.ladder.lengths)[:, None]
        each = np.round(each / max(each.max(), 1e-300), 4)  # so that no order of sums decides
        best = np.argsort(-each, axis=1, kind="stable")[:, :depths]
        place = int(np.argmax(np.take_along_axis(each, best, 1).sum(1)))
        return place, tuple(sorted(best[place].tolist()))


def crossing(ladder: Ladder, counts: Counts) -> Crossing:
    """Return the posterior of the effective length, given right answers and prompts of each cell, (2, lengths, depths)."""
    grid, step = states(), kernel(ladder.octaves)
    effects = np.zeros(len(ladder.depths))
    for _ in range(SWEEPS if counts.any() else 0):
        likely = likelihoods(counts, by_depth(grid.accuracy, effects))
        effects = effects_of(mean_curve(step, likely), counts, effects)
    places = by_depth(grid.accuracy, effects)
    weights = joint(step, likelihoods(counts, places))
    chance = weights[-1].sum(1, dtype=np.float64)
    return Crossing(ladder, chance, *summary(weights.sum(1)), told(weights, answers(places), counts))


def likelihoods(counts: Counts, places: Floats) -> NDArray[np.float32]:
    """Return the likelihood of each length's prompts, (lengths, levels, shares), 1 at the best; places: by_depth of the grid."""
    right, asked = counts
    out = np.zeros((len(asked), places.shape[1]))
    for k, d in zip(*np.nonzero(asked), strict=True):
        out[k] += np.interp(places[d], SCALE, cell_likelihood(right[k, d], asked[k, d]))
    return np.exp(out - out.max(1, keepdims=True)).reshape(len(asked), LEVELS, -1).astype(np.float32)


@lru_cache(4096)
def cell_likelihood(right: float, asked: float) -> Floats:
    """Return the log likelihood of a cell's right answers, beta-binomial, at each logit of SCALE."""
    a, b = SCATTER * answers(SCALE), SCATTER * (1 - answers(SCALE))
    return np.asarray(betaln(a + right, b + asked - right) - betaln(a, b))


def answers(places: Floats) -> Floats:
    """Return the chance of a right answer at places on the logit."""
    return np.asarray(np.clip(expit(places), LEAST, 1 - LEAST))


def by_depth(accuracy: Floats, effects: Floats) -> Floats:
    """Return the logit of each depth's accuracy, (depths, states), where that of all is `accuracy` on the mean."""
    middle = np.interp(logit(accuracy), logit(expit(SCALE[:, None] + effects).mean(1)), SCALE)
    return np.asarray(middle + effects[:, None])


def effects_of(curve: Floats, counts: Counts, effects: Floats) -> Floats:
    """Return the depths' effects at which their right answers are likeliest along a mean curve, drawn towards 0 (Newton's steps)."""
    right, asked = counts
    weight = SCATTER / (SCATTER + asked)
    for _ in range(4):
        found = expit(by_depth(curve, effects).T)
        slope = (weight * (right - asked * found)).sum(0) - effects / EFFECT**2
        bend = (weight * asked * found * (1 - found)).sum(0) + 1 / EFFECT**2
        effects = np.clip(effects + np.clip(slope / bend, -1, 1), -6, 6)
    return effects


def mean_curve(step: NDArray[np.float32], likely: NDArray[np.float32]) -> Floats:
    """Return the posterior mean of the accuracy at each length."""
    weights = passes(step, likely, np.ones((len(likely), 1, 1, len(step)), bool))[:, 0]
    return np.asarray(weights @ states().accuracy)


def joint(step: NDArray[np.float32], likely: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the chance of each state at each length by the effective length, (lengths, effective lengths, states).

    That the j-th length is the longest that holds is: it holds, and none after it does.
    """
    holds, place = states().holds, np.arange(len(likely))
    after = (place[None] - place[:, None])[..., None]  # places from a length to the effective length
    return passes(step, likely, np.where(after > 0, True, np.where(after == 0, holds, ~holds))[:, :, None])


def passes(step: NDArray[np.float32], likely: NDArray[np.float32], allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the chance of each state at each length, forward and backward, for each restriction of the states.

    allowed: (lengths, restrictions, 1, shares). Returns (lengths, restrictions, states), of sum 1 at each length.
    """
    each = likely[:, None] * allowed
    ahead, back = np.zeros_like(each), np.ones_like(each)
    ahead[0, ..., -1] = each[0, ..., -1]
    for k in range(1, len(each)):
        ahead[k] = (ahead[k - 1] @ step) * each[k]
        ahead[k] /= ahead[k].sum()
    for k in reversed(range(len(each) - 1)):
        back[k] = (each[k + 1] * back[k + 1]) @ step.T
        back[k] /= back[k].max()
    weights = (ahead * back).reshape(*each.shape[:2], -1)
    return np.asarray(weights / weights.sum((1, 2), keepdims=True))


def told(weights: NDArray[np.float32], found: Floats, counts: Counts) -> Floats:
    """Return the mutual information of the effective length and the next prompt's answer, nats, (lengths, depths).

    found: the chance of a right answer at each depth, by state.
    """
    right, asked = counts
    chance = weights.sum(2)[..., None]
    mean = (weights @ found.T.astype(np.float32)) / np.maximum(chance, 1e-30)
    after = (SCATTER * mean + right[:, None]) / (SCATTER + asked[:, None])  # a cell's prompts tell of the next one
    return np.asarray(np.maximum(entropy((chance * after).sum(1)) - (chance * entropy(after)).sum(1), 0.0))


def summary(weights: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
    """Return mean and 95% interval of accuracy at each length, of the chances of its states."""
    accuracy = states().accuracy
    order = np.argsort(accuracy, kind="stable")
    sums = np.cumsum(weights[:, order], axis=1, dtype=np.float64)
    ends = [(sums < share - 1e-6).sum(1) for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)]
    low, high = (accuracy[order][np.minimum(place, len(order) - 1)] for place in ends)
    return np.asarray(weights @ accuracy), low, high


def quantile(values: Floats, chance: Floats, share: float) -> float:
    """Return the least value that has this share of the chance at or below it."""
    order = np.argsort(values, kind="stable")
    place = min(int(np.searchsorted(np.cumsum(chance[order]), share)), len(order) - 1)
    return float(values[order[place]])


def entropy(chance: Floats) -> Floats:
    """Return the entropy of right and wrong, nats."""
    chance = np.clip(chance, 1e-12, 1 - 1e-12)
    return np.asarray(-chance * np.log(chance) - (1 - chance) * np.log1p(-chance))
