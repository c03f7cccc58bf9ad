"""Find a model's attention layers: which modules attend, where in the decoder, with how many heads, in what window."""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..position.learned import names_in
from ..position.rotary import decoder_modules, says_window
from .mechanism import Layer

WINDOW_KEYS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size")


def attention_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the text decoder's modules that call transformers' attention interface, by name, in order of depth."""
    decoder = decoder_modules(model)
    return {
        name: module for name, module in model.named_modules() if module in decoder and calls_interface(type(module))
    }


def calls_interface(kind: type[nn.Module]) -> bool:
    """Tell whether a class of modules calls transformers' attention interface, in its own forward or in one that it calls of a base.

    What code shows is no proof: what of them runs and does not call it is refused (refuse_unheard, attention_proof).
    """
    for base in kind.__mro__:
        if "forward" in vars(base):
            names = names_in(vars(base)["forward"])
            if "ALL_ATTENTION_FUNCTIONS" in names:
                return True
            bases = {each.__name__ for each in base.__mro__[1:]}
            if "forward" not in names or not {"super", *bases} & {*names}:
                return False
    return False


def layers(model: PreTrainedModel, longest: int | None = None) -> tuple[list[str], list[str]]:
    """Return the names of the attention modules without a window, and of those with one, which most mechanisms leave alone.

    longest: tokens of the longest context to come, None for as many as the model has positions; a window that holds them
    is none.
    """
    config = model.config.get_text_config()
    reach = longest or getattr(config, "max_position_embeddings", None) or math.inf
    modules = attention_modules(model)
    windowed = [name for i, (name, module) in enumerate(modules.items()) if window_of(config, module, i) < reach]
    return [name for name in modules if name not in windowed], windowed


def attends_both_ways(model: PreTrainedModel) -> bool:
    """Tell whether rows see what comes after them in every attention layer, as an encoder's do."""
    modules = attention_modules(model).values()
    return bool(modules) and not any(getattr(module, "is_causal", True) for module in modules)


def layer_of(
    model: PreTrainedModel, name: str, train_length: int, seed: int = 0, lengths: tuple[int, ...] = ()
) -> Layer:
    """Return what a mechanism is told of the layer of an attention module.

    train_length: L in tokens. seed: of first values. lengths: of an encoder's training; () for L alone.
    """
    config: Any = model.config.get_text_config()
    module = model.get_submodule(name)
    heads = heads_of(config, module)
    width = int(model.get_input_embeddings().weight.shape[-1])
    return Layer(
        heads=heads,
        train_length=train_length,
        key_heads=number(module, config, "num_key_value_heads", heads),
        head_dim=number(module, config, "head_dim", max(1, width // heads)),
        width=width,
        index=layer_indices(model)[name],
        layers=len(layer_list(model)) or len(attention_modules(model)),
        seed=seed,
        lengths=(lengths or (train_length,)) if attends_both_ways(model) else (),
    )


def number(module: nn.Module, config: Any, name: str, otherwise: int) -> int:
    """Return a whole number that a module, or else its config, tells."""
    for owner in (module, config):
        try:
            value = getattr(owner, name, None)
        except Exception:  # a config whose layers differ refuses to give one number for all
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return otherwise


def heads_of(config: Any, module: nn.Module) -> int:
    """Return a layer's query heads: its own number where layers differ."""
    own = [getattr(module, name, None) for name in ("num_heads", "num_attention_heads")]
    return next((heads for heads in own if isinstance(heads, int)), int(config.num_attention_heads))


def heads_by_layer(model: PreTrainedModel) -> dict[int, int]:
    """Return the query heads of every layer that attends, by its index in the decoder."""
    config, indices = model.config.get_text_config(), layer_indices(model)
    return {indices[name]: heads_of(config, module) for name, module in attention_modules(model).items()}


def window_of(config: Any, module: nn.Module, index: int) -> float:
    """Return how many tokens a layer's window (sliding or chunked) holds: infinite without one, 0 where its size is not told."""
    layer_types = getattr(config, "layer_types", None)
    at = getattr(module, "layer_idx", None)
    if layer_types is not None:
        kind = layer_types[index if at is None else at]
        if not says_window(kind):
            return math.inf
    elif not getattr(config, "use_sliding_window", True):
        return math.inf
    sizes = [getattr(owner, name, None) for owner in (module, config) for name in WINDOW_KEYS]
    known = [size for size in sizes if isinstance(size, int)]
    if known:
        return known[0]
    return math.inf if layer_types is None else 0


def layer_list(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder's list of layers, the one that its attention is in; empty where there is no such list.

    A layer's place in it is its true index: also where other layers do not attend, or several share one attention module.
    """
    names = list(attention_modules(model))
    lists = [
        (sum(name.startswith(f"{prefix}.") for name in names), len(found), found)
        for prefix, found in model.named_modules()
        if isinstance(found, nn.ModuleList)
    ]
    holding = [each for each in lists if each[0]]
    return max(holding, key=lambda each: each[:2])[2] if holding else nn.ModuleList()


def layer_indices(model: PreTrainedModel) -> dict[str, int]:
    """Return the true index in the decoder of every attention module, by name."""
    stack = list(layer_list(model))
    inside = {id(part): i for i, layer in reversed([*enumerate(stack)]) for part in layer.modules()}
    return {name: inside.get(id(module), layer_in(name)) for name, module in attention_modules(model).items()}


def layer_in(name: str) -> int:
    """Return the first number in a module's name, which is its layer's index; 0 where there is none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def computes_on(module: nn.Module, model: PreTrainedModel | None = None) -> torch.device:
    """Return the device of a layer's parameters, or the one they are brought to where accelerate has offloaded them.

    Quantized layers have buffers alone, or nothing that torch sees: they are where their model's words are, or on the processor.
    """
    words = [] if model is None else [model.get_input_embeddings()]
    held = [
        tensors for each in (module, *words) for tensors in (list(each.parameters()), list(each.buffers())) if tensors
    ]
    devices = [tensor.device for tensor in held[0]] if held else [torch.device("cpu")]
    if not any(device.type == "meta" for device in devices):  # some are made elsewhere while a model is built on meta
        return devices[0]
    hooks = [getattr(part, "_hf_hook", None) for part in module.modules()]
    places = [getattr(hook, "execution_device", None) for hook in hooks]
    return torch.device(next((place for place in places if place is not None), "meta"))


def reads_on(model: PreTrainedModel) -> torch.device:
    """Return the device that a model wants its token ids on, also where its layers are spread over several."""
    return computes_on(model.get_input_embeddings())
