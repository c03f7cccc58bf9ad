"""Buffers that no checkpoint holds, of a model whose code is its own: computed again, as loading leaves them to chance."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def compute_buffers(model: PreTrainedModel) -> None:
    """Give modules without parameters, of code that is not transformers' own, the buffers that they compute when they are made.

    transformers makes a model without memory and then fills in what the checkpoint holds. What else its own modules have, they
    compute anew; those of other code (RoPE's frequencies as older remote code writes them) are left with what the memory held.
    """
    kinds: set[Any] = {type(module) for module in model.modules() if has_computed_buffers(module)}
    if not kinds:
        return
    with torch.device("meta"), on_processor(kinds):
        twin = type(model)(copy.deepcopy(model.config))
    made = dict(twin.named_modules())
    for name, module in model.named_modules():
        if type(module) in kinds and name in made:
            for key in module._non_persistent_buffers_set:
                buffer, computed = module._buffers[key], made[name]._buffers.get(key)
                if buffer is not None and computed is not None and buffer.shape == computed.shape:
                    buffer.copy_(computed)


def has_computed_buffers(module: nn.Module) -> bool:
    """Tell whether a module has buffers that are not saved, no parameters, and code that is neither transformers' nor torch's."""
    home = type(module).__module__.partition(".")[0]
    return (
        home not in ("transformers", "torch")
        and bool(module._non_persistent_buffers_set)
        and next(module.parameters(), None) is None
    )


@contextmanager
def on_processor(kinds: set[Any]) -> Iterator[None]:
    """Run a block in which modules of some classes are made on the processor, whatever device the others are made on."""

    before = {kind: kind.__init__ for kind in kinds}
    try:
        for kind, build in before.items():
            kind.__init__ = partialmethod(make, build)
        yield
    finally:
        for kind, build in before.items():
            kind.__init__ = build


def make(self: nn.Module, build: Any, *arguments: Any, **options: Any) -> None:
    """Make a module by its class's own __init__, on the processor."""
    with torch.device("cpu"):
        build(self, *arguments, **options)
