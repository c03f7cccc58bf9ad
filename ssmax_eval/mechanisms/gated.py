"""Attention whose output is gated by the layer's input: a head can say nothing without a place to look at."""

import torch
from torch import Tensor, nn

from ..errors import UserError
from .mechanism import Layer, Mechanism, drawn
from .registry import register
from .seen import Seen


@register
class Gated(Mechanism):
    """output = softmax attention * sigmoid(x W), x the layer's input, W learned, a gate for every head and channel.

    W is N(0, .02) at first and has no bias, so that every gate starts near 1/2 (arXiv 2505.06708; Qwen3-Next).
    """

    name = "gated"
    reference = "Qiu et al., Gated Attention for Large Language Models, arXiv 2505.06708"
    choices = "W is N(0, .02) at first, as Qwen3-Next draws its weights; masses are the ungated softmax's"
    swap = False
    needs_input = True

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.gate = nn.Parameter(drawn(layer, 0.02, layer.width, layer.heads * layer.head_dim))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Seen, keep: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        out, weights, mixed = super().attend(q, k, v, seen, keep)
        x, (batch, heads, rows, channels) = seen.input, out.shape
        if x is None or x.shape[-1] != self.layer.width or channels != self.layer.head_dim:
            raise UserError(
                f"attention {self.name}: it wants the input of its layer, of width {self.layer.width}, and values as wide as "
                "queries; use a model with plain attention layers (Llama, Qwen, GPT-NeoX)"
            )
        gate = (x.float() @ self.gate.float()).view(batch, rows, heads, channels).transpose(1, 2)
        return out * torch.sigmoid(gate), weights, mixed
