"""Differential attention: what two maps have in common, noise, is taken away."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from .mechanism import Layer, Mechanism, drawn
from .registry import register
from .seen import Seen

EPSILON = 1e-5  # of the norm


@register
class Differential(Mechanism):
    """map = softmax(z1) - lambda softmax(z2) of a pair of heads, lambda learned per layer; the pair's values are joined.

    lambda = exp(q1.k1) - exp(q2.k2) + l0, l0 = .8 - .6 exp(-.3 depth), the four vectors N(0, .1) at first; each pair's output goes
    through RMSNorm without weights, times 1 - l0 (arXiv 2410.05258). Heads i and i + heads / 2 are a pair, as in transformers'
    DiffLlama: under grouped keys heads 2i and 2i + 1 would often join a value with itself.
    """

    name = "differential"
    reference = "Ye et al., Differential Transformer, arXiv 2410.05258"
    choices = (
        "pairs i and i + heads / 2, a norm without weights, vectors shared by a layer's heads: as DiffLlama has them"
    )
    swap = False
    signed = True
    normalised = False

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        if layer.key_heads % 2:
            raise UserError(
                f"attention {self.name}: a layer with {layer.key_heads} heads of keys has no pairs; "
                "use a model with an even number"
            )
        self.first = 0.8 - 0.6 * math.exp(-0.3 * layer.index)
        q1, k1, q2, k2 = drawn(layer, 0.1, 4, layer.head_dim)
        self.lambda_q1, self.lambda_k1 = nn.Parameter(q1), nn.Parameter(k1)
        self.lambda_q2, self.lambda_k2 = nn.Parameter(q2), nn.Parameter(k2)

    @property
    def strength(self) -> Tensor:
        """Lambda, how much of the second map is taken away; below 0 it is added."""
        q1, k1, q2, k2 = (p.float() for p in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2))
        return (q1 @ k1).exp() - (q2 @ k2).exp() + self.first

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        one, two = scores.softmax(-1).chunk(2, 1)
        return one - self.strength * two

    def join(self, v: Tensor) -> Tensor:
        return torch.cat(v.chunk(2, 1), -1)

    def finish(self, mixed: Tensor) -> Tensor:
        batch, pairs, rows, channels = mixed.shape
        normed = torch.nn.functional.rms_norm(mixed, (channels,), eps=EPSILON) * (1 - self.first)
        # a pair's channels are those of two heads that follow each other
        return normed.view(batch, pairs, rows, 2, -1).permute(0, 1, 3, 2, 4).reshape(batch, 2 * pairs, rows, -1)

    def learned(self) -> dict[str, list[float]]:
        return {"lambda": [float(self.strength.detach())]}


@register
class Dint(Differential):
    """map = A1 - lambda A2 + lambda G of a pair of heads: differential attention and the mean of A1 over the rows so far.

    G of row i is the mean of A1's rows up to i, as far as row i sees their keys, so that every row sums to 1 (arXiv 2501.17486).
    """

    name = "dint"
    reference = "Cang et al., DINT Transformer, arXiv 2501.17486"
    choices = (
        "G is a running mean over the rows so far (the paper's mean over all rows would see what comes after); lambda, its first "
        "values, pairs and the norm as differential has them"
    )
    cache = "whole"
    carries = True
    normalised = True

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        # rows of padding would be uniform
        one, two = scores.softmax(-1).masked_fill(~seen.mask, 0.0).chunk(2, 1)
        total = one.cumsum(2)
        if "total" in seen.carry:
            total = total + seen.carry["total"]
        seen.carry["total"] = total[:, :, -1:]
        share = total * seen.mask.any(1, keepdim=True)
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-30)
        return one + self.strength * (share - two)


@register
class SharedDifferential(Differential):
    """map = softmax(z1) - lambda softmax(z2), both queries and both keys of a pair one shared base and a low-rank update each.

    q_j = (W + A_j B_j) x, and so for keys, of rank r for all pairs of a layer together; lambda, norm and pairs as differential
    has them (arXiv 2501.17900).
    """

    name = "shared-differential"
    reference = "Cang et al., Shared DIFF Transformer, arXiv 2501.17900"
    choices = (
        "W is the half of the layer's own projection that belongs to the first heads, the other half lies idle; rank 8; A is "
        "N(0, 1/width) and B N(0, 1/rank) at first, so that the two maps differ from the start; lambda as differential"
    )

    def __init__(self, layer: Layer, *, rank: int = 8) -> None:
        super().__init__(layer)
        if not 1 <= rank <= 4096:
            raise UserError(f"attention option rank={rank} of {self.name}: allowed are whole numbers from 1 to 4096")
        query, key = (heads // 2 * layer.head_dim for heads in (layer.heads, layer.key_heads))
        shapes = [(2, layer.width, rank), (2, rank, query), (2, layer.width, rank), (2, rank, key)]
        sizes = [math.prod(shape) for shape in shapes]
        # behind the numbers that lambda took
        numbers = drawn(layer, 1.0, 4 * layer.head_dim + sum(sizes))[4 * layer.head_dim :].split(sizes)
        a_query, b_query, a_key, b_key = (
            nn.Parameter(each.view(shape) * shape[1] ** -0.5) for each, shape in zip(numbers, shapes, strict=True)
        )
        self.a_query, self.b_query, self.a_key, self.b_key = a_query, b_query, a_key, b_key

    def project(self, projected: Tensor, x: Tensor, to: Literal["query", "key"]) -> Tensor:
        a, b = (self.a_query, self.b_query) if to == "query" else (self.a_key, self.b_key)
        base = projected.chunk(2, -2)[0]
        updates = [(x @ a[j].float() @ b[j].float()).unflatten(-1, base.shape[-2:]) for j in (0, 1)]
        return torch.cat([base + update for update in updates], -2)
