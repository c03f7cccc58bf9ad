"""Entmax: sparse weights, exactly 0 for keys whose score is too far below the best."""

import math

import torch
from torch import Tensor

from .mechanism import HIDDEN, Layer, Mechanism, per_head
from .registry import register
from .seen import Seen

STEPS = 6  # of Newton once it is near; it gets there by halves


def entmax15(scores: Tensor) -> Tensor:
    """Return the 1.5-entmax of scores over the last axis: max(z / 2 - tau, 0)^2, tau such that it sums to 1 (arXiv 1905.05702).

    Newton on tau from the left, where the sum is convex and falls, so that no sorting is needed and -inf is fine. The last
    step is differentiated: at the solution its gradient is the implicit one.
    """
    half = (scores - scores.amax(-1, keepdim=True).detach()) / 2
    with torch.no_grad():
        tau = torch.full_like(half[..., :1], -1.0)
        # equal scores are the slowest: tau goes from -1 to -1 / sqrt(keys)
        for _ in range(STEPS + math.ceil(math.log2(half.shape[-1] + 1) / 2)):
            root = (half - tau).clamp(min=0)
            tau = tau + (root.square().sum(-1, keepdim=True) - 1) / (2 * root.sum(-1, keepdim=True))
        slope = 2 * (half - tau).clamp(min=0).sum(-1, keepdim=True)
    tau = tau + ((half - tau).clamp(min=0).square().sum(-1, keepdim=True) - 1) / slope
    return (half - tau).clamp(min=0).square()


@register
class Entmax15(Mechanism):
    """weights = 1.5-entmax(factor z), the factor learned per head: sparse, exactly 0 for keys far below the best.

    factor is 1 at first unless given. From 1, training under QK-norm leaves few keys any gradient; from .3 it goes as softmax.
    """

    name = "entmax-1.5"
    reference = "Peters et al., arXiv 1905.05702"
    choices = "a learned factor for each head, 1 at first, which is plain 1.5-entmax"
    sparse = True

    def __init__(self, layer: Layer, *, factor: float = 1.0) -> None:
        super().__init__(layer)
        self.factor = per_head(factor, layer.heads)

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        scaled = self.factor.float()[:, None, None] * scores
        return entmax15(scaled.masked_fill(~seen.mask, HIDDEN))  # also where a factor is below 0
