"""Softplus in place of the exponential: LSSA, and LSSAR, which sharpens its weights by a power."""

import math

import torch
from torch import Tensor

from ..errors import UserError
from .mechanism import Layer, Mechanism
from .registry import register
from .seen import Seen

LEAST = torch.finfo(torch.float32).tiny
EARLY = 3  # rows that see so few keys keep all of them


@register
class LSSA(Mechanism):
    """weights = softplus(ln d ln n cos(q, k)), divided by their sum.

    d: channels of a head. n: keys that a row sees. The lengths of q and k say nothing (arXiv 2501.13428).
    """

    name = "lssa"
    reference = "Gao, Spratling & Gionfrida, arXiv 2501.13428"
    choices = (
        "what a position or a mask adds is added inside of softplus; after QK-norm q and k are normalised once more"
    )
    swap = False

    def query(self, q: Tensor, seen: Seen) -> Tensor:
        return torch.nn.functional.normalize(q.float(), dim=-1)

    def key(self, k: Tensor, seen: Seen) -> Tensor:
        return torch.nn.functional.normalize(k.float(), dim=-1)

    def scores(self, q: Tensor, k: Tensor, seen: Seen) -> Tensor:
        cosine = super().scores(q, k, seen) / seen.scaling
        return math.log(q.shape[-1]) * seen.n.log()[..., None] * cosine

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        positive = torch.nn.functional.softplus(scores).masked_fill(~seen.mask, 0.0)
        return positive / positive.sum(-1, keepdim=True).clamp(min=LEAST)


@register
class LSSAR(LSSA):
    """weights = relu(n A - 1)^p, divided by their sum, A the weights of lssa: keys below the mean get exactly 0.

    p is 15 unless given; models trained at short lengths want less, 3. Rows that see 3 keys or fewer are A^p.
    """

    name = "lssar"
    choices = (
        "rows whose keys all have the same weight keep it (the formula gives 0 / 0 there); few keys are counted by n, not by "
        "index, so that padding changes nothing; the rest as lssa"
    )
    sparse = True

    def __init__(self, layer: Layer, *, p: float = 15.0) -> None:
        super().__init__(layer)
        if not 1 <= p <= 100:
            raise UserError(f"attention option p={p:g} of {self.name}: allowed are numbers from 1 to 100")
        self.p = p

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        first = super().weights(scores, seen)
        n = seen.n[..., None]
        above = (n * first - (n > EARLY).float()).clamp(min=0)
        best = above.amax(-1, keepdim=True)
        # a power of what is at most 1 cannot overflow, and the division takes the factor out again
        sharp = (above / best.detach().clamp(min=LEAST)) ** self.p
        return torch.where(best > 0, sharp / sharp.sum(-1, keepdim=True).clamp(min=LEAST), first)
