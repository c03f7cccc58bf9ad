"""Softmax with somewhere else to go: a share of each row's weight is put on no key."""

import torch
from torch import Tensor

from .mechanism import Layer, Mechanism, per_head
from .registry import register
from .seen import Seen


def with_sink(scores: Tensor, sink: Tensor) -> Tensor:
    """Return softmax over scores (batch, heads, rows, keys) and one score more, sink (heads or 1,), whose weight is dropped."""
    extra = sink.float()[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]


@register
class Softmax1(Mechanism):
    """weights = exp(z) / (1 + sum exp(z)): softmax over the keys and one more score of 0, so that a head can attend to nothing."""

    name = "softmax1"
    reference = "Miller, Attention Is Off By One, 2023"
    normalised = False

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        return with_sink(scores, torch.zeros(1, device=scores.device))


@register
class SoftmaxSink(Mechanism):
    """weights = exp(z) / (exp(sink) + sum exp(z)), the sink a learned score per head, 0 at first unless given."""

    name = "softmax-sink"
    reference = "GPT-OSS"
    choices = "the sink starts at 0, which is softmax1"
    normalised = False

    def __init__(self, layer: Layer, *, sink: float = 0.0) -> None:
        super().__init__(layer)
        self.sink = per_head(sink, layer.heads)

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        return with_sink(scores, self.sink)
