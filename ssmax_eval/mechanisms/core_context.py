"""Core context aware attention: what is far away is seen as pooled groups, what is near as it is."""

import torch
from torch import Tensor

from ..errors import UserError
from .mechanism import HIDDEN, Layer, Mechanism
from .registry import register
from .seen import Seen


@register
class CCA(Mechanism):
    """weights = one softmax over pooled groups of g tokens, far away, and the row's own last s to s + g - 1 tokens.

    A group is pooled by softmax(last q of the group . its keys), keys as RoPE has turned them; its score is that of the pooled
    key. The weight of a far token is its group's times its share of it: pooling dilutes, and never cuts off (arXiv 2412.12465).
    """

    name = "cca"
    reference = "Chen et al., Core Context Aware Transformers, arXiv 2412.12465"
    choices = (
        "g 16 and s 1024 unless given; groups count from the first token that is no padding; a position's bias is pooled as the "
        "scores are; the paper trains further after the swap, and its learned projections are left as they are"
    )
    causal_only = True
    cache = "whole"  # a group is pooled by a query, and a cache holds none

    def __init__(self, layer: Layer, *, g: int = 16, s: int = 1024) -> None:
        super().__init__(layer)
        for option, value in (("g", g), ("s", s)):
            if value < 1:
                raise UserError(f"attention option {option}={value} of {self.name}: allowed are whole numbers from 1")
        self.g, self.s = g, s

    def begin(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> dict[str, Tensor]:
        """Return place and order (batch or 1, keys), which token each key is and which key each token, padding left out or last,
        and pool (batch, heads, groups, g), each token's share of its group.
        """
        there = seen.there
        order = (~there).int().argsort(dim=-1, stable=True)
        groups = order.shape[-1] // self.g
        batch, heads, _, channels = q.shape
        at = order[:, None, : groups * self.g, None].expand(batch, 1, -1, channels)
        last = q.gather(2, at[:, :, self.g - 1 :: self.g].expand(-1, heads, -1, -1))
        keys = k.gather(2, at.expand(-1, k.shape[1], -1, -1)).view(batch, k.shape[1], groups, self.g, channels)
        grouped = last.unflatten(1, (k.shape[1], heads // k.shape[1]))
        scores = torch.einsum("bkhgd,bkgtd->bkhgt", grouped, keys).flatten(1, 2)
        place = there.cumsum(-1) - 1
        return {"place": place, "order": order, "pool": (scores * seen.scaling).softmax(-1)}

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        batch, heads, rows, keys = scores.shape
        groups = keys // self.g
        pool = seen.carry["pool"][:, :, None, :groups]
        order = seen.carry["order"][:, None, None, : groups * self.g].expand(batch, heads, rows, -1)
        # the product with a pooled key is the pooled product
        pooled = (scores.gather(-1, order).unflatten(-1, (groups, self.g)) * pool).sum(-1)
        n = seen.n.long()[..., None]  # of tokens that are no padding, the row's own among them
        near = n.where(n <= self.s, self.s + (n - self.s) % self.g)
        distance = n - 1 - seen.carry["place"][:, None, None, :keys]
        pooled = pooled.masked_fill(torch.arange(groups, device=n.device) * self.g >= n - near, HIDDEN)
        both = torch.cat([pooled, scores.masked_fill(distance >= near, HIDDEN)], -1).softmax(-1)
        far = (both[..., :groups, None] * pool).flatten(-2)
        return both[..., groups:].scatter_add(-1, order, far)
