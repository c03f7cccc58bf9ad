"""What a layer asks of attention that our function does not give, or gives beside ours: refused, and not dropped without a word."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import UserError


def refuse_dropped(module: nn.Module, keys: int, given: Mapping[str, Any], biased: bool) -> None:
    """Raise UserError for what a layer that sees so many keys asks for: caps, sinks, a choice among its keys, two positions.

    biased: a position of ours is added to its scores; one of the layer's own would stay beside it.
    Sparse indexers mask what they leave out by themselves for implementations that they know by name, and hand `indices` to all
    others, ours too.
    """
    if dropped := [name for name in ("softcap", "s_aux") if given.get(name) is not None]:
        raise UserError(
            f"attention with {dropped[0]}: sdpa would drop it; use a model without, or leave mechanisms and masses out"
        )
    if biased and given.get("position_bias") is not None:
        raise UserError(
            f"{type(module).__name__} adds a position of its own to its scores, which stays on; use a model with RoPE, or leave "
            "--position out"
        )
    for name, chosen in given.items():
        if name.endswith("indices") and isinstance(chosen, Tensor) and chosen.shape[-1] < keys:
            raise UserError(
                f"{type(module).__name__} chooses which of its {keys} keys it attends to ({name}), and would attend to all of "
                "them through our attention function, so mechanisms and attention masses would be wrong; use the needle and "
                "loss probes without --attention"
            )
