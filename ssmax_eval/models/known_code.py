"""Which code decides a model's numbers, and whether all of it is known: that of files of KNOWN packages.

Python lets any of it be exchanged: a method of one module or of its class, a function of a module, a hook, an attention function
under a name. So every place is looked at where a forward takes its code from, in wrappers, closures and containers too.
"""

import functools
import hashlib
import importlib
import inspect
import sys
import sysconfig
import types
from collections import namedtuple
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

KNOWN = (
    "ssmax_eval", "transformers", "torch", "peft", "accelerate",
    # what these import by name
    "huggingface_hub", "safetensors", "tokenizers", "numpy", "tqdm", "packaging", "regex", "yaml", "psutil", "requests", "PIL",
    "typing_extensions", "jinja2", "sympy",
)  # fmt: skip
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
COMPILED = ("__compiled_fn_", "__resume_at_")  # what torch.compile leaves in a module for its own graphs
FRAMEWORK = set(vars(nn.Module())) - {"training"}  # of every module's attributes, those that torch keeps
# modules whose functions every model calls by name
SHARED = (
    "torch", "torch.nn.functional", "torch.nn.modules.module", "transformers.masking_utils", "transformers.modeling_rope_utils",
    "transformers.activations", "transformers.cache_utils", "transformers.modeling_utils", "transformers.utils.generic",
    "transformers.integrations.sdpa_attention",
)  # fmt: skip


def renamed() -> Iterator[tuple[str, Any]]:
    """Yield functions that stand under another's name in SHARED modules: some do from the start, others were put there."""
    for name in SHARED:
        for attribute, value in list(vars(sys.modules.get(name) or importlib.import_module(name)).items()):
            own = getattr(value, "__name__", attribute)
            if (
                isinstance(value, types.FunctionType | types.BuiltinFunctionType)
                and own != attribute
                and not own.startswith("<")
                and not attribute.startswith(COMPILED)
            ):
                yield f"{name}.{attribute} is {own}", value


def of_dataclass(function: types.FunctionType) -> bool:
    """Tell whether a function is one that a dataclass of a known module had written for it: such code has no file."""
    made = function.__code__.co_filename == "<string>" and function.__name__.startswith("__")
    return made and is_known_module(function.__module__ or "")


def of_named_tuple(function: types.FunctionType) -> bool:
    """Tell whether a function is a named tuple's `__new__`, instruction for instruction: it has no file, and a module of its own."""
    code = function.__code__
    if function.__name__ != "__new__" or code.co_filename != "<string>":
        return False
    plain: Any = namedtuple("plain", [f"field{i}" for i in range(code.co_argcount - 1)]).__new__
    same = all(getattr(code, name) == getattr(plain.__code__, name) for name in ("co_code", "co_names", "co_consts"))
    return same and all(function.__globals__.get(name) is plain.__globals__[name] for name in code.co_names)


def unknown_code(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, implementations: Iterable[str]
) -> Iterator[tuple[str, Any]]:
    """Yield where the numbers of a loaded pair hang on code that is not known, and that code.

    implementations: the names of the attention functions that its modules ask for.
    """
    seen: dict[int, Any] = {}  # what was looked at, kept so that no other object takes its id
    classes: dict[type, str] = {}
    for name, module in model.named_modules():
        where = name or type(model).__name__
        classes.setdefault(type(module), where)
        for attribute, value in vars(module).items():
            if attribute not in FRAMEWORK:
                yield from foreign(f"{where}.{attribute}", value, seen)
        for kind in HOOKS:
            yield from foreign(f"{where}.{kind}", list(getattr(module, kind).values()), seen)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            classes.setdefault(type(tensor), f"{where}.{key}")
    classes.setdefault(type(tokenizer), "tokenizer")
    yield from foreign("tokenizer", list(vars(tokenizer).values()), seen)
    yield from unknown_in_classes(classes, implementations, seen)


def unknown_library_code(kinds: Iterable[str], implementations: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the same for a model that is not loaded yet, as far as code was put over transformers' own.

    kinds: its model types; without any, every type that is imported counts.
    """
    homes = [CONFIG_MAPPING[kind].__module__ if kind in CONFIG_MAPPING else "" for kind in kinds]
    folders = [f"{home.rpartition('.')[0]}." if home else "transformers.models." for home in homes] or [
        "transformers.models."
    ]
    modules = [
        each for name, each in list(sys.modules.items()) if name.startswith(tuple(folders)) and ".modeling_" in name
    ]
    classes = {
        value: name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and (issubclass(value, nn.Module) or value.__module__ == module.__name__)
    }
    yield from unknown_in_classes(classes, implementations, {})


def unknown_in_classes(
    classes: dict[type, str], implementations: Iterable[str], seen: dict[int, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield what is not known in classes, in the modules they are of, in SHARED (global hooks too), and attention functions."""
    for name in implementations:
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            if name in registry.valid_keys():
                yield from foreign(f"attention implementation {name}", registry[name], seen)
        for registry, mapping in AS_THEY_CAME:
            if name in mapping and registry[name] is not mapping[name]:
                yield f"attention implementation {name}", registry[name]
    yield from ((where, each) for where, each in renamed() if where not in RENAMED)
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
                if attribute.startswith(COMPILED):
                    continue
                yield from foreign(f"{where}.{attribute}", value, seen, imported=True)


def foreign(where: str, value: Any, seen: dict[int, Any], imported: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the pieces of a value that run as code and come from no known file: in wrappers, closures, containers and classes.

    imported: the value is a name of a module; classes there are not looked into, but for where they come from.
    """
    if id(value) in seen or value is None or isinstance(value, bool | int | float | str | bytes | Tensor | nn.Module):
        return
    seen[id(value)] = value
    if isinstance(value, dict | list | tuple | set | frozenset):
        # a dict's own values: transformers' lazy ones import every model when asked for theirs
        for each in list(dict.values(value) if isinstance(value, dict) else value):
            yield from foreign(where, each, seen, imported)
    elif isinstance(value, types.MethodType):
        yield from foreign(where, value.__func__, seen)
        yield from foreign(where, value.__self__, seen)
    elif isinstance(value, functools.partial):
        yield from foreign(where, [value.func, value.args, value.keywords], seen)
    elif isinstance(value, types.FunctionType):
        if not (is_known_code(value.__code__) or of_dataclass(value) or of_named_tuple(value)):
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
    packages = [
        inspect.getfile(importlib.import_module(name)) for name in KNOWN if name in sys.modules or name == "ssmax_eval"
    ]
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
        file: str = code.__code__.co_filename
    else:
        module = code if isinstance(code, types.ModuleType) else sys.modules.get(str(getattr(code, "__module__", "")))
        file = str(getattr(module, "__file__", None) or getattr(code, "__name__", type(code).__name__))
    return f"{getattr(code, '__qualname__', getattr(code, '__name__', type(code).__name__))} of {Path(file).name}"


def code_hash(code: Any) -> str:
    """Return a hash of a function or class as far as it can be seen: instructions, constants, names, closure, members."""
    digest = hashlib.sha256()
    if isinstance(code, types.FunctionType):
        digest.update(code_bytes(code.__code__))
        held = [code.__defaults__, code.__kwdefaults__, *map(cell_of, code.__closure__ or ())]
        digest.update(visible(held).encode())
    elif isinstance(code, types.BuiltinFunctionType | functools.partial):
        digest.update(str(getattr(code, "__qualname__", type(code).__name__)).encode())
    else:
        for name, member in sorted(vars(code).items()):
            inner = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(inner, types.FunctionType):
                digest.update(f"{name}\0{code_hash(inner)}".encode())
            elif not name.startswith("__"):
                digest.update(f"{name}\0{visible(member)}".encode())
    return digest.hexdigest()


def visible(value: Any) -> str:
    """Return what of a held value can be told apart from others in every process: plain values, and names."""
    if isinstance(value, bool | int | float | str | bytes) or value is None:
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(visible, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {visible(each)}' for key, each in value.items())}}}"
    if isinstance(value, types.FunctionType):
        return code_hash(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def code_bytes(code: types.CodeType) -> bytes:
    constants = [
        code_bytes(each) if isinstance(each, types.CodeType) else repr(each).encode() for each in code.co_consts
    ]
    return b"\0".join([code.co_code, *constants, repr((code.co_names, code.co_freevars)).encode()])


# what stood where when this module was first imported: one known function in another's place is another model too
RENAMED = {where for where, _ in renamed()}
AS_THEY_CAME = [(each, dict(each._global_mapping)) for each in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)]
