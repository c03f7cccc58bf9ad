"""What a model handed over as an object computes: a fingerprint of its state and code, and whether all of that code is known.

A model on disk is its files. An object can be changed after it was loaded: weights, a module's attributes, its code
(a patched method or module function, a hook, a registered attention function). State is hashed. Code counts as known where
it comes from files of KNOWN packages; any other is hashed as far as it can be seen, and its runs are not resumed, because
what cannot be seen (a file it reads, a global of its module) can change without the hash changing.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..attention.interface import IMPLEMENTATION

KNOWN = (
    "ssmax_eval", "transformers", "torch", "peft", "accelerate",
    # what these import by name
    "huggingface_hub", "safetensors", "tokenizers", "numpy", "tqdm", "packaging", "regex", "yaml", "psutil", "requests", "PIL",
    "typing_extensions", "jinja2", "sympy",
)  # fmt: skip
# of no bearing on numbers: names, and what a forward or generate leaves behind
PASSING = {"name_or_path", "_name_or_path", "transformers_version", "warnings_issued", "max_seq_len_cached", "long_inv_freq"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BUILT_IN = set(vars(nn.Module())) - {"training"}
# modules whose functions every model calls by name
SHARED = (
    "torch", "torch.nn.functional", "torch.nn.modules.module", "transformers.masking_utils", "transformers.modeling_rope_utils",
    "transformers.activations", "transformers.cache_utils", "transformers.modeling_utils", "transformers.utils.generic",
    "transformers.integrations.sdpa_attention",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Identity:
    """A fingerprint (16 hex digits), and the first piece of code that is not known (None if all is)."""

    fingerprint: str
    unknown_code: str | None


def identify(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Identity:
    """Return the identity of a loaded pair.

    Over config, generation config, parameters and buffers (those that are not saved too), plain attributes of every module,
    the attention functions in use, the tokenizer with its post-processor, and whatever code is not known.
    """
    unknown = dict(unknown_code(model, tokenizer))
    digest = hashlib.sha256()
    for part in (
        canonical(model.config),
        canonical(getattr(model, "generation_config", None)),
        sorted(implementations(model)),
        {name: [named(type(module)), canonical(plain_attributes(module))] for name, module in model.named_modules()},
        called_names(model),
        tokenizer_state(tokenizer),
        sorted(f"{where} {code_hash(code)}" for where, code in unknown.items()),
    ):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\\0")
    for name, tensor in tensors(model):
        digest.update(f"{name}\\0{tensor.dtype}\\0{tuple(tensor.shape)}\\0".encode())
        digest.update(tensor_bytes(tensor))
    first = next(iter(unknown.items()), None)
    return Identity(digest.hexdigest()[:16], first and f"{first[0]} ({origin(first[1])})")


def implementations(model: PreTrainedModel) -> set[str]:
    """Return the names of the attention implementations that a model's modules ask for; ours without a law is sdpa."""
    configs = [model.config, *(module.config for module in model.modules() if hasattr(module, "config"))]
    names = {str(getattr(config, "_attn_implementation", None)) for config in configs}
    return {"sdpa" if name == IMPLEMENTATION else name for name in names}


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer by name, but for frequencies that RoPE sets anew with each forward."""
    moving = {
        name
        for name, module in model.named_modules()
        if any(word in str(getattr(module, "rope_type", "")) for word in ("dynamic", "longrope"))
    }
    yield from model.named_parameters(remove_duplicate=False)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        owner, _, own = name.rpartition(".")
        if not (owner in moving and own.endswith("inv_freq") and not own.endswith("original_inv_freq")):
            yield name, buffer


def tensor_bytes(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        return b"meta"
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds beside parameters, buffers, modules and hooks."""
    return {name: value for name, value in vars(module).items() if name not in BUILT_IN and name not in PASSING}


def called_names(model: PreTrainedModel) -> dict[str, dict[str, str]]:
    """Return what each name of the model's classes and of their modules in transformers stands for: one may stand for another's."""
    classes = {base for module in model.modules() for base in type(module).__mro__ if ".models." in base.__module__}
    owners = [*classes, *(sys.modules[name] for name in sorted({each.__module__ for each in classes}) if name in sys.modules)]
    return {
        named(owner): {key: named(each) for key, each in vars(owner).items() if isinstance(each, types.FunctionType)}
        for owner in owners
    }


def named(code: Any) -> str:
    return f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', getattr(code, '__name__', type(code).__qualname__))}"


def canonical(value: Any, depth: int = 6) -> Any:
    """Return a value as JSON has it, the same in every process; of objects their class and, some levels down, their attributes."""
    if isinstance(value, bool | int | float | str) or value is None:
        return repr(value) if isinstance(value, float) else value
    if depth == 0 or isinstance(value, nn.Module):
        return type(value).__qualname__
    if isinstance(value, Tensor):
        return hashlib.sha256(tensor_bytes(value)).hexdigest()
    if isinstance(value, dict):
        return {str(key): canonical(each, depth - 1) for key, each in value.items() if key not in PASSING}
    if isinstance(value, list | tuple):
        return [canonical(each, depth - 1) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(str(each) for each in value)
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
    plain = {name: each for name, each in vars(tokenizer).items() if isinstance(each, bool | int | float | str)}
    return [type(tokenizer).__qualname__, rules, canonical(plain), tokenizer.special_tokens_map, tokenizer("a 1é").input_ids]


def unknown_code(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Any]]:
    """Yield where a model's numbers hang on code that does not come from KNOWN packages, and that code."""
    seen: dict[int, Any] = {}  # what was looked at, kept so that no other object takes its id
    classes: dict[type, str] = {}
    for name, module in model.named_modules():
        where = name or type(model).__name__
        classes.setdefault(type(module), where)
        for attribute, value in plain_attributes(module).items():
            yield from foreign(f"{where}.{attribute}", value, seen)
        for kind in HOOKS:
            yield from foreign(f"{where}.{kind}", list(getattr(module, kind).values()), seen)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            classes.setdefault(type(tensor), f"{where}.{key}")
    classes.setdefault(type(tokenizer), "tokenizer")
    yield from foreign("tokenizer", list(vars(tokenizer).values()), seen)
    every = nn.modules.module
    yield from foreign(
        "global hooks", [list(getattr(every, f"_global{kind}").values()) for kind in HOOKS], seen
    )
    for name in implementations(model):
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            if name in registry.valid_keys():
                yield from foreign(f"attention implementation {name}", registry[name], seen)
    modules = {name: name for name in SHARED}
    for kind, where in classes.items():
        for base in kind.__mro__[:-1]:
            yield from foreign(f"{where}: class {base.__qualname__}", base, seen)
            if base.__module__ != "builtins":
                modules.setdefault(base.__module__, f"{where}: module {base.__module__}")
    for name, where in modules.items():
        loaded = sys.modules.get(name) or importlib.import_module(name)
        if is_known_file(getattr(loaded, "__file__", None)):  # of an unknown one its classes tell
            for attribute, value in list(vars(loaded).items()):
                yield from foreign(f"{where}.{attribute}", value, seen, imported=True)


def foreign(where: str, value: Any, seen: dict[int, Any], imported: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the pieces of a value that run as code and come from no known file: in wrappers, closures, containers and classes.

    imported: the value is a name of a module; classes there are not looked into, but for where they come from.
    """
    if id(value) in seen or value is None or isinstance(value, bool | int | float | str | bytes | Tensor | nn.Module):
        return
    seen[id(value)] = value
    if isinstance(value, dict | list | tuple | set | frozenset):
        for each in list(value.values() if isinstance(value, dict) else value):
            yield from foreign(where, each, seen, imported)
    elif isinstance(value, types.MethodType):
        yield from foreign(where, value.__func__, seen)
        yield from foreign(where, value.__self__, seen)
    elif isinstance(value, functools.partial):
        yield from foreign(where, [value.func, value.args, value.keywords], seen)
    elif isinstance(value, types.FunctionType):
        if not is_known_code(value.__code__):
            yield where, value
            return
        yield from foreign(where, [cell_of(each) for each in value.__closure__ or ()], seen)
        yield from foreign(where, [value.__defaults__, value.__kwdefaults__, getattr(value, "__wrapped__", None)], seen)
    elif isinstance(value, staticmethod | classmethod):
        yield from foreign(where, value.__func__, seen)
    elif isinstance(value, property):
        yield from foreign(where, [value.fget, value.fset], seen)
    elif isinstance(value, type):
        if value.__module__ in ("builtins", "typing") or imported:
            if not is_known_module(value.__module__):
                yield where, value
        elif not is_known_module(value.__module__):
            yield where, value
        else:
            for name, member in list(vars(value).items()):
                if callable(member) or isinstance(member, property | staticmethod | classmethod):
                    yield from foreign(f"{where}.{name}", member, seen, imported=isinstance(member, type))
    elif isinstance(value, types.ModuleType):
        made = type(value) is not types.ModuleType and is_known_module(type(value).__module__)  # as torch.ops
        if not made and not is_known_module(value.__name__):
            yield where, value
    elif not isinstance(value, types.BuiltinFunctionType | PreTrainedConfig):
        if not is_known_module(type(value).__module__):
            yield where, type(value)
        elif not imported and isinstance(getattr(value, "__dict__", None), dict):
            yield from foreign(where, value.__dict__, seen)


def cell_of(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


@functools.cache
def known_folders() -> tuple[str, ...]:
    """Return where the code of KNOWN packages and of Python itself lies."""
    packages = [inspect.getfile(importlib.import_module(name)) for name in KNOWN if name in sys.modules or name == "ssmax_eval"]
    return tuple(str(Path(file).resolve().parent) + "/" for file in packages)


@functools.cache
def is_known_file(file: str | None) -> bool:
    """Tell whether a file belongs to a KNOWN package or to Python's own library."""
    if file is None:
        return False
    path = str(Path(file).resolve())
    library = sysconfig.get_paths()["stdlib"]
    return path.startswith(known_folders()) or (path.startswith(library) and "site-packages" not in path)


def is_known_code(code: types.CodeType) -> bool:
    # what dataclasses and named tuples write has no file
    return is_known_file(code.co_filename) or code.co_filename.startswith("<frozen ")


@functools.cache
def is_known_module(name: str) -> bool:
    """Tell whether a class's module is one of KNOWN packages, loaded from their files, or built into Python."""
    top = name.partition(".")[0]
    if top in sys.builtin_module_names or top in ("builtins", "typing"):
        return True
    loaded = sys.modules.get(name)
    file = getattr(loaded, "__file__", None)
    return is_known_file(file) if file else top in KNOWN or top in sys.stdlib_module_names


def origin(code: Any) -> str:
    """Return the name of a piece of code and of its file."""
    if isinstance(code, types.FunctionType):
        file = code.__code__.co_filename
    else:
        module = code if isinstance(code, types.ModuleType) else sys.modules.get(code.__module__)
        file = getattr(module, "__file__", None) or getattr(module, "__name__", "")
    return f"{getattr(code, '__qualname__', code.__name__)} of {Path(file).name}"


def code_hash(code: Any) -> str:
    """Return a hash of a function or class as far as it can be seen: instructions, constants, names, closure, members."""
    digest = hashlib.sha256()
    if isinstance(code, types.FunctionType):
        digest.update(code_bytes(code.__code__))
        held = [code.__defaults__, code.__kwdefaults__, *map(cell_of, code.__closure__ or ())]
        digest.update(json.dumps(canonical(held), sort_keys=True, default=str).encode())
    else:
        for name, member in sorted(vars(code).items()):
            inner = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(inner, types.FunctionType):
                digest.update(f"{name}\\0{code_hash(inner)}".encode())
            elif not name.startswith("__"):
                digest.update(f"{name}\\0{json.dumps(canonical(member), default=str)}".encode())
    return digest.hexdigest()


def code_bytes(code: types.CodeType) -> bytes:
    constants = [code_bytes(each) if isinstance(each, types.CodeType) else repr(each).encode() for each in code.co_consts]
    return b"\\0".join([code.co_code, *constants, repr((code.co_names, code.co_freevars)).encode()])
