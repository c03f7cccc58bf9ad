"""What the mechanisms of all layers share, learned-p's table, while a checkpoint is loaded.

A parameter that several layers share cannot be placed: a device map may put those layers on different devices, some on
disk. So each layer gets a buffer of its own to load into, which stays in memory under any map. Once the checkpoint is
loaded, the buffers become one parameter again. Where layers were offloaded they stay buffers: such a model only reads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.mechanism import shared_parameters


def separate(model: PreTrainedModel) -> dict[str, str]:
    """Replace what mechanisms share by buffers of each layer's own; return {name in a later layer: name in the first}."""
    ties = shared_parameters(mechanisms_of(model))
    for name in {**ties, **{first: first for first in ties.values()}}:
        mechanism, key = owner(model, name)
        values = torch.empty_like(mechanism.get_parameter(key))
        delattr(mechanism, key)
        mechanism.register_buffer(key, values)
    return ties


def fill(model: PreTrainedModel, ties: Mapping[str, str], missing: set[str]) -> None:
    """Copy what a checkpoint holds once, for the first layer, to the others; their names leave the missing ones."""
    for name, first in ties.items():
        if name in missing and first not in missing:
            values, table = model.get_buffer(first), model.get_buffer(name)
            if values.is_meta or table.is_meta:
                raise UserError(f"offload_buffers: it would leave {name} without values; leave it out")
            table.copy_(values)
            missing.discard(name)


def join(model: PreTrainedModel, ties: Mapping[str, str]) -> None:
    """Make parameters of the buffers again, one of those that are equal; tables that a wrapper trained apart stay apart."""
    mechanisms = mechanisms_of(model)
    if any(parameter.is_meta for mechanism in mechanisms.values() for parameter in mechanism.parameters()):
        return
    parameters = {name: nn.Parameter(model.get_buffer(name)) for name in {*ties, *ties.values()}}
    for name, parameter in parameters.items():
        mechanism, key = owner(model, name)
        first = parameters[ties.get(name, name)]
        del mechanism._buffers[key]
        mechanism.register_parameter(key, first if equal(parameter, first) else parameter)
    shared_parameters(mechanisms)


def own_tables(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Return a state dict with every layer's values of its own if only some layers share them, else None.

    That comes of wrappers that copy single layers. A checkpoint can say that all layers share, but not which do.
    """
    mechanisms = mechanisms_of(model)
    ties = shared_parameters(mechanisms)
    if len(ties) in (0, (len(mechanisms) - 1) * len({name.rpartition(".")[2] for name in ties})):
        return None
    state: dict[str, Tensor] = model.state_dict()
    return state | {name: state[name].clone() for name in ties}


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other.to(one.device))


def owner(model: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter or buffer, and its name there."""
    module, _, key = name.rpartition(".")
    return model.get_submodule(module), key
