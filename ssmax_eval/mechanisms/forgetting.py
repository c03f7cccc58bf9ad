"""Forgetting attention: a gate at every token lets what came before fade."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .mechanism import Layer, Mechanism, drawn, positive
from .registry import register
from .seen import Seen


def first_biases(layer: Layer, shortest: float, longest: float | None) -> nn.Parameter:
    """Return a gate bias for each head: -ln(expm1(1 / T)), at which weights fall by e in T tokens, T spaced evenly in logarithm."""
    last = positive("longest", float(layer.train_length) if longest is None else longest)
    if last < positive("shortest", shortest):
        raise UserError(f"attention option longest={last:g}: allowed are numbers from shortest={shortest:g}")
    times = torch.logspace(math.log10(shortest), math.log10(last), layer.heads, dtype=torch.float64)
    return nn.Parameter(-torch.expm1(1 / times).log().float())


@register
class FoXBias(Mechanism):
    """weights = softmax(z + t log sigmoid(b)), t the distance in tokens, b learned per head: FoX whose gates know no input.

    At first weights fall by e in T tokens, T from `shortest` to `longest` over the heads, spaced evenly in logarithm.
    """

    name = "fox-bias"
    reference = "Lin et al., Forgetting Transformer, arXiv 2503.02130, data-independent gates"
    choices = "T from 2 tokens to L at first, for which the authors' code has no default"
    swap = False

    def __init__(self, layer: Layer, *, shortest: float = 2.0, longest: float | None = None) -> None:
        super().__init__(layer)
        self.b = first_biases(layer, shortest, longest)

    def scores(self, q: Tensor, k: Tensor, seen: Seen) -> Tensor:
        return super().scores(q, k, seen) + F.logsigmoid(self.b.float())[:, None, None] * seen.distance


@register
class FoX(Mechanism):
    """weights = softmax(z_ij + sum of log sigmoid(w.x_k + b) over j < k <= i), x the layer's input, w and b learned per head.

    The sums need every token's input, and a KV cache keeps none of earlier tokens: whole sequences only.
    """

    name = "fox"
    reference = "Lin et al., Forgetting Transformer, arXiv 2503.02130"
    choices = (
        "b is fox-bias's at first, and w N(0, .02); the authors start b at 0, which is shortest=1.4427,longest=1.4427. "
        "Their code keeps the sums beside the KV cache, ours does not"
    )
    causal_only = True
    swap = False
    cache = "whole"
    needs_input = True

    def __init__(self, layer: Layer, *, shortest: float = 2.0, longest: float | None = None) -> None:
        super().__init__(layer)
        self.w = nn.Parameter(drawn(layer, 0.02, layer.heads, layer.width))
        self.b = first_biases(layer, shortest, longest)

    def scores(self, q: Tensor, k: Tensor, seen: Seen) -> Tensor:
        x = seen.forward.input
        assert x is not None
        gates = F.linear(x[:, : k.shape[2]].float(), self.w.float(), self.b.float())
        # sums of thousands of tokens are large, and the difference of two near ones small
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        sums = F.logsigmoid(gates).to(exact).cumsum(1).transpose(1, 2)
        own = sums.gather(2, seen.position[:, None].expand(*sums.shape[:2], -1))
        return super().scores(q, k, seen) + (own[..., None] - sums[..., None, :]).float()
