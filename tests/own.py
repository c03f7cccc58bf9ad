"""A user's own file with a mechanism and a position, and how to forget that it was imported."""

import sys

from ssmax_eval.mechanisms.registry import MECHANISMS
from ssmax_eval.position.bias import BIASES

FILE = '''
import torch
from ssmax_eval import Bias, Mechanism, register, register_bias
from ssmax_eval.mechanisms.mechanism import per_head

@register
class Own(Mechanism):
    """weights = sigmoid(factor z - ln n)"""
    name = "own-sigmoid"
    normalised = False

    def __init__(self, layer, *, factor: float = 1.0):
        super().__init__(layer)
        self.factor = per_head(factor, layer.heads)

    def weights(self, scores, seen):
        return torch.sigmoid(self.factor[:, None, None] * scores - seen.n.log()[..., None]).masked_fill(~seen.mask, 0)

@register_bias
class Root(Bias):
    """-sqrt(distance)"""
    name = "root"

    def forward(self, distance):
        return -distance.sqrt()
'''


def forget(before):
    """Be as a process in which no file was imported."""
    for table, old in zip((MECHANISMS, BIASES), before, strict=True):
        table.clear()
        table.update(old)
    for name in [name for name in sys.modules if name.startswith("ssmax_eval_imported") or name == "theirs"]:
        del sys.modules[name]
