"""What a model handed over as an object computes: a fingerprint of its state and code, and whether all of that code is known.

A model on disk is its files. An object can be changed after it was loaded: weights, a module's attributes, its code
(a patched method or module function, a hook, a registered attention function). State is hashed. Code that is
not known (known_code.py) is hashed as far as it can be seen, and its runs are not resumed, because what cannot be seen (a file
it reads, a global of its module) can change without the hash changing.
"""

import dataclasses
import functools
import hashlib
import json
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..mechanisms.attach import refuse_unheard
from ..mechanisms.implementation import IMPLEMENTATION, mechanism_named
from ..position.rotary import MOVING
from .checkpoint import PREFIX
from .known_code import COMPILED, FRAMEWORK, HOOKS, code_hash, origin, unknown_code, unknown_library_code
from .sources import ModelSource

# of no bearing on numbers: names, and what a forward or generate leaves behind
PASSING = {
    "name_or_path",
    "_name_or_path",
    "transformers_version",
    "warnings_issued",
    "max_seq_len_cached",
    "long_inv_freq",
    "_original_object_hash",
    "heard",
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """A fingerprint (16 hex digits), and the first piece of code that is not known (None if all is)."""

    fingerprint: str
    unknown_code: str | None


def identify(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Identity:
    """Return the identity of a loaded pair.

    Over config, parameters and buffers (those that are not saved too), plain attributes of every module (the generation config is
    one), the attention functions in use, the tokenizer with its post-processor, and whatever code is not known.
    """
    unknown = list(unknown_code(model, tokenizer, implementations(model)))
    digest = hashlib.sha256()
    for part in (
        canonical(model.config),
        sorted(implementations(model)),
        {name: [named(type(module)), canonical(plain_attributes(module))] for name, module in model.named_modules()},
        called_names(model),
        {
            name: canonical(
                [[hook for hook in getattr(each, kind).values() if hook is not refuse_unheard] for kind in HOOKS]
            )
            for name, each in model.named_modules()
        },
        tokenizer_state(tokenizer),
        hashes(unknown),
    ):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\0")
    for name, tensor in tensors(model):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    for name, packed in packed_values(model):
        digest.update(json.dumps([name, canonical(packed)]).encode())
    return Identity(digest.hexdigest()[:16], first_of(unknown))


def identify_source(source: ModelSource) -> Identity:
    """Return the identity of a model on disk: its files', unless this process has put code over transformers' own."""
    config = source.config()
    asked = config.get("attn_implementation", config.get("_attn_implementation"))
    unknown = list(unknown_library_code(model_types(config), {"sdpa", "eager", str(asked)}))
    if not unknown:
        return Identity(source.fingerprint, None)
    digest = hashlib.sha256(json.dumps([source.fingerprint, hashes(unknown)]).encode())
    return Identity(digest.hexdigest()[:16], first_of(unknown))


def mechanism_asked(config: dict[str, Any]) -> str:
    """Return what the text part of a config.json asks to attend with: softmax, or a user's own function by its name."""
    parts = [config, *(each for each in config.values() if isinstance(each, dict))]
    asked = [part.get(key) for part in parts for key in ("attn_implementation", "_attn_implementation")]
    named = [mechanism_named(each) for each in asked if isinstance(each, str)]
    own = [name for name in named if name != "softmax" and not any(word in name for word in ("flash", "flex"))]
    return own[0] if own else "softmax"


def model_types(config: dict[str, Any]) -> set[str]:
    """Return the model types that a config.json and its nested configs name."""
    nested = set().union(*(model_types(each) for each in config.values() if isinstance(each, dict)))
    return nested | ({str(config["model_type"]).removeprefix(PREFIX)} if "model_type" in config else set())


def hashes(unknown: list[tuple[str, Any]]) -> list[str]:
    return sorted(f"{where} {code_hash(code)}" for where, code in unknown)


def first_of(unknown: list[tuple[str, Any]]) -> str | None:
    return f"{unknown[0][0]} ({origin(unknown[0][1])})" if unknown else None


def implementations(model: PreTrainedModel) -> set[str]:
    """Return the names of the attention implementations that a model's modules ask for; ours without a mechanism is sdpa."""
    configs = [model.config, *(module.config for module in model.modules() if hasattr(module, "config"))]
    names = {str(getattr(config, "_attn_implementation", None)) for config in configs}
    return {"sdpa" if name == IMPLEMENTATION else name for name in names}


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer by name, but for frequencies that RoPE sets anew with each forward."""
    moving = {
        name
        for name, module in model.named_modules()
        if any(word in str(getattr(module, "rope_type", "")) for word in MOVING)
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, offloaded(model, name) if parameter.is_meta else parameter
    for name, buffer in model.named_buffers(remove_duplicate=False):
        owner, _, own = name.rpartition(".")
        if not (owner in moving and own.endswith("inv_freq") and not own.endswith("original_inv_freq")):
            yield name, offloaded(model, name) if buffer.is_meta else buffer


def offloaded(model: PreTrainedModel, name: str) -> Tensor:
    """Return a tensor of a model by its name, with its values where accelerate has put them, in memory or on a disk."""
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor: Tensor = getattr(module, own)
    for hook in hooks_of(getattr(module, "_hf_hook", None)):
        with suppress(KeyError, TypeError):  # another's, or one that holds no weights
            tensor = getattr(hook, "weights_map", None)[own]  # type: ignore[index]
    return tensor


def hooks_of(hook: Any) -> list[Any]:
    """Return the hooks of accelerate that one is made of."""
    return [one for each in getattr(hook, "hooks", ()) for one in hooks_of(each)] + [hook]


def packed_values(model: PreTrainedModel) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what modules save that is neither a parameter nor a buffer, as quantized linear layers do, by the module's name."""
    for name, module in model.named_modules():
        saved: dict[str, Any] = {}
        if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
            module._save_to_state_dict(saved, "", False)
        elif type(module).get_extra_state is not nn.Module.get_extra_state:
            saved["extra_state"] = module.get_extra_state()
        if saved:
            yield name, saved


def tensor_bytes(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        return b"meta"
    if hasattr(tensor, "__tensor_flatten__"):  # made of others, as quantized weights are
        names, context = tensor.__tensor_flatten__()
        return b"".join(tensor_bytes(getattr(tensor, name)) for name in names) + str(context).encode()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds beside parameters, buffers, modules and hooks."""
    return {name: value for name, value in vars(module).items() if name not in FRAMEWORK and name not in PASSING}


def called_names(model: PreTrainedModel) -> dict[str, dict[str, str]]:
    """Return what each name of the model's classes and of their modules in transformers stands for: one may stand for another's."""
    classes = {base for module in model.modules() for base in type(module).__mro__ if ".models." in base.__module__}
    owners = [
        *classes,
        *(sys.modules[name] for name in sorted({each.__module__ for each in classes}) if name in sys.modules),
    ]
    return {
        named(owner): {
            key: named(each)
            for key, each in vars(owner).items()
            if isinstance(each, types.FunctionType) and not key.startswith(COMPILED)
        }
        for owner in owners
    }


def named(code: Any) -> str:
    return f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', getattr(code, '__name__', type(code).__qualname__))}"


def canonical(value: Any, depth: int = 6) -> Any:
    """Return a value as JSON has it, the same in every process; of objects their class and, some levels down, their attributes."""
    if isinstance(value, bool | int | float | str) or value is None:
        return repr(value) if isinstance(value, float) else value
    if isinstance(value, nn.Module):  # one that is called from outside the tree of modules, or from another place of it
        held = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        return [type(value).__qualname__, {name: canonical(tensor) for name, tensor in held.items()}]
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Tensor):
        return hashlib.sha256(tensor_bytes(value)).hexdigest()
    if isinstance(value, dict):
        return {str(key): canonical(each, depth - 1) for key, each in value.items() if key not in PASSING}
    if isinstance(value, list | tuple):
        return [canonical(each, depth - 1) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(str(each) for each in value)
    if isinstance(value, functools.partial):
        return ["partial", *(canonical(each, depth - 1) for each in (value.func, list(value.args), value.keywords))]
    if isinstance(value, types.MethodType):
        return [named(value), canonical(value.__self__, depth - 1)]
    if callable(value) or isinstance(value, type):
        return named(value)
    if isinstance(value, PreTrainedConfig):
        return [type(value).__qualname__, canonical(value.to_dict(), depth - 1)]
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    return [type(value).__qualname__, canonical(getattr(value, "__dict__", {}), depth - 1)]


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return all that makes a tokenizer's ids: its rules with their post-processor, special tokens, and what it does with some text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    kinds: tuple[type, ...] = (bool, int, float, str)
    if backend is None:  # merges and the like are its own
        kinds += (dict, list, tuple, set)
    plain = {name: each for name, each in vars(tokenizer).items() if isinstance(each, kinds)}
    if isinstance(templates := getattr(tokenizer, "chat_template", None), dict):  # several, by name
        plain["chat_template"] = templates
    return [
        type(tokenizer).__qualname__,
        rules,
        canonical(plain),
        tokenizer.special_tokens_map,
        tokenizer("a 1é").input_ids,
    ]
