"""The effective context length between tested lengths: its posterior over a ladder of lengths, and where the next prompt tells most.

Half of the prior is curves of any shape, half those that fall smoothly (curves.py); the prompts decide which tells more. The next
prompts are those that are expected to tell most, per token, of what keeps the interval wide: whether the effective length is below,
in or above the likeliest window that is as narrow as wanted. (Least expected entropy: Kontsevich and Tyler 1999, Vision Research 39,
2729, of threshold and slope; QUEST, Watson and Pelli 1983, Perception and Psychophysics 33, 113; nuisance parameters beside the one
that is wanted: Prins 2013, Journal of Vision 13(7):3. Of the whole length's entropy tails are a small part, and of the interval all:
asking for that takes up to twice the tokens, benchmarks/reach_simulation.py.)
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.special import expit

from .clusters import CONFIDENCE, Floats
from .curves import AnyShape, Smooth, levels
from .depth_effects import MEANS, Counts, answers, effects_of, gain, likelihoods

SMOOTH = 0.5  # of the prior: curves that fall smoothly
TRUST = 0.8  # of the posterior that they have at most: a form that is not true must not decide
SWEEPS = 3  # in which curve, levels and effects are fitted in turn
# of the posterior in a 95% interval: to stop when it is narrow costs coverage (benchmarks/reach_simulation.py)
MASS = 0.98
TOO_LITTLE = 0.2  # accuracy at the shortest length below which 85% of it means nothing


@dataclass(frozen=True)
class Ladder:
    """The lengths that can be asked, even in ln length from the shortest to the longest, and the depths.

    precision: the factor within which the effective length is wanted, above 1; a step of the ladder is at most that.
    kept: how many of the lengths can be read, from the shortest on; None: all.
    """

    shortest: int
    longest: int
    depths: tuple[float, ...]
    precision: float
    kept: int | None = None

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        ratio, steps = self.longest / self.shortest, self.steps
        return tuple(round(self.shortest * ratio ** (k / steps)) for k in range(steps + 1))[: self.kept]

    @property
    def steps(self) -> int:
        """The steps from the shortest length to the longest."""
        return math.ceil(math.log(self.longest / self.shortest) / math.log(self.precision) - 1e-9)

    @property
    def octaves(self) -> float:
        """The octaves of one step."""
        return math.log2(self.longest / self.shortest) / self.steps

    @property
    def edges(self) -> Floats:
        """The ends of the cells that the effective length can be in, tokens; the last cell is all beyond the longest."""
        return np.array([*self.lengths, math.inf])

    def nothing(self) -> Counts:
        """Return counts of no prompts."""
        return np.zeros((2, len(self.lengths), len(self.depths)))


@dataclass(frozen=True)
class Crossing:
    """What is known of the effective length.

    chance: of each cell between the ladder's edges. accuracy, low, high: of each length, mean over depths, with its 95% interval.
    information: nats that the next prompt is expected to tell of the side of the window on which the effective length is,
    (lengths, depths).
    smooth: the chance that the curve is of those that fall smoothly.
    """

    ladder: Ladder
    chance: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    smooth: float
    curves: "Curves" = field(repr=False)

    @cached_property
    def information(self) -> Floats:
        return self.curves.told(self.chance, self.smooth, self.sides)

    @property
    def sides(self) -> Floats:
        """Which cells lie below, in and above the likeliest window that would be precise enough, 0 or 1, (3, cells)."""
        edges = np.minimum(self.ladder.edges, self.ladder.lengths[-1])
        widest = edges[:-1] * self.ladder.precision**2 * (1 + 1e-9)
        ends = (
            np.searchsorted(edges, widest, side="right") - 1
        )  # of windows by their first cell; the last ones hold all beyond
        sums = np.append(0.0, np.cumsum(self.chance))
        first = int(
            np.argmax(np.round(sums[ends] - sums[:-1], 6))
        )  # of equals the first, so that no order of sums decides
        side = np.digitize(np.arange(len(self.chance)), [first, ends[first]])
        return np.eye(3)[side].T

    def cell(self, quantile: float) -> int:
        """Return the cell in which a quantile of the effective length lies."""
        return min(int(np.searchsorted(np.cumsum(self.chance), quantile)), len(self.chance) - 1)

    @property
    def effective_length(self) -> float:
        """The median, in tokens; the longest length where it is beyond."""
        place = self.cell(0.5)
        edges = self.ladder.edges
        return float(min(math.sqrt(edges[place] * edges[place + 1]), self.ladder.lengths[-1]))

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval, tokens; infinite where the longest length may still hold."""
        low, high = self.cell((1 - MASS) / 2), self.cell((1 + MASS) / 2)
        return float(self.ladder.edges[low]), float(self.ladder.edges[high + 1])

    @property
    def spread(self) -> float:
        """The upper end of the interval over the lower, the longest length standing for all beyond it."""
        low, high = self.interval
        return min(high, self.ladder.lengths[-1]) / low

    @property
    def precise(self) -> bool:
        """Whether both ends are within the precision of the interval's middle."""
        return self.spread <= self.ladder.precision**2 * (1 + 1e-9)

    @property
    def finds_nothing(self) -> bool:
        """Whether so little is found at the shortest length, for sure, that no share of it can be looked for."""
        return bool(self.high[0] < TOO_LITTLE)

    def against(self, other: "Crossing") -> tuple[float, float]:
        """Return the 95% interval of how many times further this reaches than another.

        Each lies anywhere in its cell; beyond the longest length any may be.
        """
        one, two, chance = self.ladder.edges, other.ladder.edges, np.outer(self.chance, other.chance).ravel()
        return (
            quantile(np.divide.outer(one[:-1], two[1:]).ravel(), chance, (1 - MASS) / 2),
            quantile(np.divide.outer(one[1:], two[:-1]).ravel(), chance, (1 + MASS) / 2),
        )

    def next_cells(self, depths: int) -> tuple[int, tuple[int, ...]]:
        """Return the place of the length whose best depths tell most per token, and the places of these; of equals the first."""
        each = self.information / np.array(self.ladder.lengths)[:, None]
        each = np.round(each / max(each.max(), 1e-300), 4)  # so that no order of sums decides
        best = np.argsort(-each, axis=1, kind="stable")[:, :depths]
        place = int(np.argmax(np.take_along_axis(each, best, 1).sum(1)))
        return place, tuple(sorted(best[place].tolist()))


@dataclass(frozen=True)
class Curves:
    """Both kinds of curves as prompts weigh them; found: the chance of a right answer at each depth, at MEANS."""

    counts: Counts
    found: Floats
    any_shape: AnyShape
    smooth: Smooth

    def told(self, chance: Floats, smooth: float, groups: Floats) -> Floats:
        """Return the mutual information of the effective length's group and the next prompt's answer, nats, (lengths, depths).

        groups: which cells each holds, 0 or 1, (groups, cells).
        """
        parts = [
            (1 - smooth, self.any_shape.posterior.chance, self.any_shape.answers(self.found)),
            (smooth, self.smooth.posterior.chance, self.smooth.answers(self.found)),
        ]
        mean = sum(weight * each[:, None] * right for weight, each, right in parts) / np.maximum(chance, 1e-30)[:, None]
        of_group = groups @ chance
        in_group = (groups * chance) @ mean / np.maximum(of_group, 1e-30)[:, None]
        each = entropy((chance[:, None] * mean).sum(1)) - (of_group[:, None] * entropy(in_group)).sum(1)
        return np.maximum(each, 0.0) * gain(self.counts[1])


def crossing(ladder: Ladder, counts: Counts) -> Crossing:
    """Return the posterior of the effective length, given right answers and prompts of each cell, (2, lengths, depths)."""
    grid, effects = levels(), np.zeros(len(ladder.depths))
    for _ in range(SWEEPS if counts.any() else 0):
        chain = AnyShape(ladder.octaves, likelihoods(counts, answers(MEANS, effects)), grid)
        effects = effects_of(chain.mean, counts, effects)
        grid = grid.closer(chain.levels)
    found = answers(MEANS, effects)
    likely = likelihoods(counts, found)
    chain, smooth = AnyShape(ladder.octaves, likely, grid), Smooth(ladder.lengths, likely, grid)
    one, other = chain.posterior, smooth.posterior
    share = min(TRUST, float(expit(other.evidence - one.evidence + math.log(SMOOTH / (1 - SMOOTH)))))
    return Crossing(
        ladder,
        (1 - share) * one.chance + share * other.chance,
        *summary((1 - share) * one.accuracy + share * other.accuracy),
        share,
        Curves(counts, found, chain, smooth),
    )


def summary(accuracy: Floats) -> tuple[Floats, Floats, Floats]:
    """Return mean and 95% interval of accuracy at each length, of the chances of MEANS."""
    sums = np.cumsum(accuracy, axis=1)
    low, high = ((sums < share - 1e-6).sum(1) for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return accuracy @ MEANS, MEANS[low], MEANS[np.minimum(high, len(MEANS) - 1)]


def quantile(values: Floats, chance: Floats, share: float) -> float:
    """Return the least value that has this share of the chance at or below it."""
    order = np.argsort(values, kind="stable")
    place = min(int(np.searchsorted(np.cumsum(chance[order]), share)), len(order) - 1)
    return float(values[order[place]])


def entropy(chance: Floats) -> Floats:
    """Return the entropy of right and wrong, nats."""
    chance = np.clip(chance, 1e-12, 1 - 1e-12)
    return np.asarray(-chance * np.log(chance) - (1 - chance) * np.log1p(-chance))
