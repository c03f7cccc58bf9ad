"""Python files of a user's own: what runs is the text that was read, and hashed."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .errors import UserError

# code that was asked about, and the hash of its file then: an edited constant changes no function. By id, as what is reloaded may be
# equal; the code is kept, so that no other takes its id
SEEN: dict[int, tuple[CodeType, str]] = {}


def run_file(path: Path, content: bytes, module: str) -> ModuleType:
    """Run a file's content as a module of a name, and return it; it is no module if that fails.

    Python's own import would run bytecode that it cached of an earlier text of the same size and second, and leave that cache
    beside the user's file. Raises UserError for a name that does not end in .py, and what the content raises.
    """
    spec = importlib.util.spec_from_file_location(module, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise UserError(f"import {path.name!r}: it is no Python file; its name has to end in .py")
    made = sys.modules[module] = importlib.util.module_from_spec(spec)
    try:
        exec(spec.loader.source_to_code(content, str(path)), made.__dict__)
    except BaseException:
        del sys.modules[module]
        raise
    return made


def file_of(each: Any) -> tuple[Path, str] | None:
    """Return the file that a function or class comes from, and a sha256 of it.

    None for what comes from no file, and where the file was edited since Python imported it: what runs is not in it then.
    """
    try:
        path = Path(inspect.getfile(each))
        content = path.read_bytes()
        written = {*codes(compile(content, str(path), "exec", dont_inherit=True))}
    except (OSError, TypeError, ValueError, SyntaxError):
        return None
    beside = vars(sys.modules[each.__module__]).values() if each.__module__ in sys.modules else ()
    sha256 = hashlib.sha256(content).hexdigest()
    running = [code for value in (each, *beside) for code in running_in(value, each.__module__)]
    for code in running:
        if Path(code.co_filename) == path and (
            code not in written or SEEN.setdefault(id(code), (code, sha256))[1] != sha256
        ):
            return None
    return path, sha256


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of everything that is defined in a piece of code."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from codes(each)


def running_in(value: Any, module: str) -> Iterator[CodeType]:
    """Yield the code that a function has, or the methods of a class of a module."""
    of_class = isinstance(value, type) and value.__module__ == module
    for each in vars(value).values() if of_class else [value]:
        inner = getattr(each, "__func__", getattr(each, "fget", each))  # class and static methods, properties
        if isinstance(inner, FunctionType):
            yield inner.__code__
