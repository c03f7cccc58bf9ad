"""Sigmoid attention: each key gets its weight alone, whatever the others score."""

import torch
from torch import Tensor

from .mechanism import Layer, Mechanism
from .registry import register
from .seen import Seen


@register
class Sigmoid(Mechanism):
    """weights = sigmoid(z + b), b = -ln n unless given: about 1 / n each where scores are near 0."""

    name = "sigmoid"
    reference = "Ramapuram et al., arXiv 2409.04431"
    choices = "n is each row's own; the paper's is the length of the sequence. b=0 is the default of the authors' code"
    swap = False
    normalised = False

    def __init__(self, layer: Layer, *, b: float | None = None) -> None:
        super().__init__(layer)
        self.b = b

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        return torch.sigmoid(scores - seen.n.log()[..., None] if self.b is None else scores + self.b)
