"""Weights of chosen query rows, as the mechanism itself gives them in a forward: rows x keys, never keys x keys."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..errors import UserError
from .mechanism import Mechanism
from .seen import Seen


@dataclass(eq=False)
class Recorded:
    """What one layer did in the chosen rows.

    mechanism: what it attended with. seen: what the rows see. given: their weights, where the mechanism computed them;
    scores, float32 (batch, heads, rows, keys), -inf where a row may not look, where the weights are a softmax of them, which
    sdpa keeps to itself. mixed (batch, maps, rows, any): their weighted values, of values (batch, a divisor of maps, keys, any).
    """

    mechanism: Mechanism
    seen: Seen
    values: Tensor
    mixed: Tensor
    scores: Tensor | None = None
    given: Tensor | None = None

    @cached_property
    def weights(self) -> Tensor:
        """Float32 (batch, maps, rows, keys), 0 where a row may not look."""
        if self.given is not None:
            return self.given
        assert self.scores is not None
        return self.mechanism.weights(self.scores, self.seen).nan_to_num()


class Recorder:
    """Reduce what every layer does in the chosen rows where it arises, and keep what `reduce` makes of it by layer.

    rows (batch, chosen): query rows of the forward to come. kept: by the layer's index in the decoder, in the order in which
    layers attended; a layer that attends with something else is not in it.
    """

    def __init__(self, rows: Tensor, reduce: Callable[[Recorded], Any]) -> None:
        self.rows = rows
        self.reduce = reduce
        self.kept: dict[int, Any] = {}
        self.called: list[str] = []  # the attention modules that ran

    def offer(self, layer: int, recorded: Recorded) -> None:
        """Take what a layer did."""
        if layer in self.kept:
            raise UserError(
                f"layer {layer} attends twice in one forward, so its attention is not one set of heads; "
                "use the needle and loss probes"
            )
        self.kept[layer] = self.reduce(recorded)
