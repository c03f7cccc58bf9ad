"""Entmax: sparse weights, exactly 0 for keys whose score is too far below the best."""

import math

import torch
from torch import Tensor, nn

from .mechanism import HIDDEN, Layer, Mechanism, drawn, per_head
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


def sparsemax(scores: Tensor) -> Tensor:
    """Return the sparsemax of scores over the last axis: max(z - tau, 0), tau such that it sums to 1 (arXiv 1602.02068).

    Newton on tau from the left: the sum is piecewise linear, so the steps end at the solution itself, when no key is left out
    any more. The gradient is that of tau over the keys that stay.
    """
    z = scores - scores.amax(-1, keepdim=True).detach()
    with torch.no_grad():
        inside = z > -1
        count = inside.sum(-1, keepdim=True)
        # the product of the sum's excess and the keys that stay falls by 4 in each step
        for _ in range(12 + math.ceil(math.log2(z.shape[-1] + 1))):
            tau = (z.where(inside, 0).sum(-1, keepdim=True) - 1) / count
            before, inside = count, inside & (z > tau)
            count = inside.sum(-1, keepdim=True)
            if torch.equal(count, before):
                break
    tau = (z.where(inside, 0).sum(-1, keepdim=True) - 1) / count
    return (z - tau).clamp(min=0)


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
        return entmax15(self.times_factor(scores, seen))

    def times_factor(self, scores: Tensor, seen: Seen) -> Tensor:
        """Return the scores times the factor, far below all others where a row may not look."""
        product = self.factor.float()[:, None, None] * scores
        return product.masked_fill(~seen.mask, HIDDEN)  # also where a factor is below 0


@register
class Sparsemax(Entmax15):
    """weights = sparsemax(factor z), the factor learned per head: the sparsest of the family, linear in z where above 0.

    factor is 1 at first unless given; see entmax-1.5.
    """

    name = "sparsemax"
    reference = "Martins & Astudillo, arXiv 1602.02068"
    choices = "a learned factor for each head, 1 at first, which is plain sparsemax"

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        return sparsemax(self.times_factor(scores, seen))


@register
class ASEntmax(Mechanism):
    """weights = 1.5-entmax(z (delta + beta (ln(n + 1))^gamma)), beta and gamma learned per head, delta given.

    First values are the paper's unless given: delta 1, beta uniform in .1 to 1, gamma N(0, .1). n + 1, as its authors' code has
    it, keeps the logarithm above 0.
    """

    name = "asentmax"
    reference = "Vasylenko et al., arXiv 2506.16640; the form without x, `learn` in the authors' code"
    choices = (
        "first values are the paper's; under QK-norm they leave recall at .4 after the 200 steps of recipe smoke, where "
        "delta=0,beta=0.08,gamma=1 comes to 1"
    )
    swap = False
    sparse = True

    def __init__(
        self, layer: Layer, *, delta: float = 1.0, beta: float | None = None, gamma: float | None = None
    ) -> None:
        super().__init__(layer)
        self.delta = delta
        # uniform and normal from one draw, the same for the same layer and seed
        first, second = drawn(layer, 1.0, 2, layer.heads)
        self.beta = nn.Parameter(0.1 + 0.9 * torch.special.ndtr(first)) if beta is None else per_head(beta, layer.heads)
        self.gamma = nn.Parameter(0.1 * second) if gamma is None else per_head(gamma, layer.heads)

    def scores(self, q: Tensor, k: Tensor, seen: Seen) -> Tensor:
        # here and not in the query, which a model of bfloat16 would round: 2% of an output
        log_n = (seen.n + 1).log()[..., None]
        scale = self.delta + self.beta.float()[:, None, None] * log_n ** self.gamma.float()[:, None, None]
        return scale * super().scores(q, k, seen)

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        return entmax15(scores)
