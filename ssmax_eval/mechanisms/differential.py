"""Differential attention: what two maps have in common, noise, is taken away."""

import math

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
