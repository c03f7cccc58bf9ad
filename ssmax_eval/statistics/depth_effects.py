"""What right answers tell of the accuracy at each length, where depths differ and prompts do not stand alone.

A depth differs from the mean of all by an effect on the logit, the same at each length. Prompts count as fewer than they are, as
prompts do that are drawn in clusters (Kish 1965, Survey Sampling): those of a trial share a haystack, and a cell lies off the sum
of length and depth. The second counts only as far as depths are asked unevenly, for the mean over these very depths is wanted.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from .clusters import Floats

SCATTER = 30.0  # of cells around the sum of length and depth: as if each were drawn with that many prompts
TOGETHER = 1.15  # prompts of a trial that count as one: four in a round, which hang together by .05 in the packs
EFFECT = 3.0  # standard deviation of a depth's effect, logits
LEAST = 0.003  # chance of a right answer, and of a wrong one, whatever the curve: one slip must not decide
SCALE = np.linspace(-14.0, 14.0, 561)  # logits of a depth's accuracy, between which means over depths are interpolated
MEANS = np.clip(expit(np.linspace(-6.0, 6.0, 481)), LEAST, 1 - LEAST)  # accuracies at which likelihoods are tabulated
Counts = NDArray[np.float64]  # (2, lengths, depths): right answers, and prompts


def bins(accuracy: Floats) -> NDArray[np.int64]:
    """Return the place in MEANS that is nearest to each accuracy, on the logit."""
    places = np.log(accuracy) - np.log1p(-accuracy)
    return np.clip(np.rint((places + 6) * 40), 0, len(MEANS) - 1).astype(np.int64)


def answers(accuracy: Floats, effects: Floats) -> Floats:
    """Return the chance of a right answer at each depth, (depths, accuracies), where the mean over depths is `accuracy`."""
    middle = np.interp(logit(accuracy), logit(expit(SCALE[:, None] + effects).mean(1)), SCALE)
    return np.asarray(np.clip(expit(middle + effects[:, None]), LEAST, 1 - LEAST))


def likelihoods(counts: Counts, found: Floats) -> Floats:
    """Return the log likelihood of each length's prompts at each of MEANS, 0 at the best; found: answers at MEANS."""
    right, asked = counts
    out = worth(asked)[:, None] * (right @ np.log(found) + (asked - right) @ np.log1p(-found))
    return np.asarray(out - out.max(1, keepdims=True))


def worth(asked: Floats) -> Floats:
    """Return, of each length, as how many independent prompts one of its prompts counts, at most 1; asked: (..., depths)."""
    prompts = asked.sum(-1)
    uneven = (asked**2).sum(-1) / np.maximum(prompts, 1) - prompts / asked.shape[-1]
    return np.asarray(1 / (TOGETHER + uneven / (SCATTER + 1)))


def gain(asked: Floats) -> Floats:
    """Return how many independent prompts more a length has by one more at each depth, (lengths, depths)."""
    more = asked[:, None] + np.eye(asked.shape[1])
    return np.asarray(np.maximum(more.sum(-1) * worth(more) - (asked.sum(-1) * worth(asked))[:, None], 0.0))


def effects_of(curve: Floats, counts: Counts, effects: Floats) -> Floats:
    """Return the depths' effects at which their right answers are likeliest along a mean curve, drawn towards 0 (Newton's steps)."""
    right, asked = counts
    weight = worth(asked)[:, None]
    for _ in range(4):
        found = answers(curve, effects).T
        slope = (weight * (right - asked * found)).sum(0) - effects / EFFECT**2
        bend = (weight * asked * found * (1 - found)).sum(0) + 1 / EFFECT**2
        effects = np.clip(effects + np.clip(slope / bend, -1, 1), -6, 6)
    return effects
