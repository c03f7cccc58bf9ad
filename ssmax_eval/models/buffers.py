"""Buffers that no checkpoint holds, of a model whose code is its own: computed again, as loading can leave them to chance."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@torch.no_grad()
def compute_buffers(model: PreTrainedModel) -> None:
    """Give modules without weights, of code that is not transformers' own, the buffers that they compute when they are made.

    transformers makes a model without memory and then fills in what the checkpoint holds, and what the model's _init_weights fills.
    What modules of other code compute when they are made (RoPE's frequencies as older remote code writes them) is left as the
    memory was. A note names those that cannot be made apart: of modules with weights.
    """
    computed = {name: module for name, module in model.named_modules() if computes_buffers(module)}
    kinds = {type(module) for module in computed.values() if next(module.parameters(), None) is None}
    made = made_again(model, kinds) if kinds else {}
    left = []
    for name, module in computed.items():
        own = {
            key: buffer for key in module._non_persistent_buffers_set if (buffer := module._buffers[key]) is not None
        }
        new = made[name]._buffers if type(module) in kinds and name in made else {}
        left += [f"{name}.{key}".lstrip(".") for key, buffer in own.items() if not fill(buffer, new.get(key))]
        if len(new):
            model._init_weights(module)  # which comes last in loading too
    if left:
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s: its own code makes %d buffers that no checkpoint holds (%s first); those that its _init_weights does "
            "not fill are what the memory held",
            type(model).__name__,
            len(left),
            left[0],
        )


def computes_buffers(module: nn.Module) -> bool:
    """Tell whether a module has buffers that are not saved, and code that is neither transformers' nor torch's."""
    home = type(module).__module__.partition(".")[0]
    return home not in ("transformers", "torch") and bool(module._non_persistent_buffers_set)


def fill(buffer: Tensor, computed: Tensor | None) -> bool:
    """Give a buffer the values that were computed for it, and tell whether there were any."""
    if computed is None or computed.is_meta or computed.shape != buffer.shape:
        return False
    buffer.copy_(computed)
    return True


def made_again(model: PreTrainedModel, kinds: set[Any]) -> dict[str, nn.Module]:
    """Return the modules of a twin of a model, those of some classes with memory; nobody's random numbers are used up."""
    with torch.random.fork_rng(), torch.device("meta"), on_processor(kinds):
        return dict(type(model)(copy.deepcopy(model.config)).named_modules())


@contextmanager
def on_processor(kinds: set[Any]) -> Iterator[None]:
    """Run a block in which modules of some classes are made on the processor, whatever device the others are made on."""
    own = {kind: vars(kind).get("__init__") for kind in kinds}
    try:
        for kind in kinds:
            kind.__init__ = partialmethod(make, kind.__init__)
        yield
    finally:
        for kind, build in own.items():
            if build is None:  # a base's
                del kind.__init__
            else:
                kind.__init__ = build


def make(self: nn.Module, build: Any, *arguments: Any, **options: Any) -> None:
    """Make a module by its class's own __init__, on the processor."""
    with torch.device("cpu"):
        build(self, *arguments, **options)
