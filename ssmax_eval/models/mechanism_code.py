"""Which code a mechanism or a position bias runs: edited code is another one, and rows of what cannot be told from an edited one are
not served again.
"""

import hashlib
import inspect
import sys
import types
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..mechanisms.files import source_of
from ..mechanisms.registry import is_own
from .known_code import code_hash, foreign, is_known_module


def code_source(each: type[Any] | None) -> str | None:
    """Return a sha256 over the code of a mechanism or bias that is not this package's own. None for its own as they came."""
    if each is None:
        return None
    found = foreign_code(each)
    if not found and is_own(each):
        return None
    parts = sorted(f"{where} {code_hash(code)}" for where, code in found)
    if (file := source_of(each)) is not None:  # with the functions and constants beside it
        parts.append(file[1])
    else:  # typed into a prompt: only its compiled code can be seen
        with suppress(OSError, TypeError):
            parts.append(inspect.getsource(each))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_told(kinds: Iterable[type[Any] | None]) -> bool:
    """Tell whether the code of mechanisms and biases can be told from an edited one's: this package's own as it came, or a file.

    A file that imports modules that are not known is not told: they can be edited.
    """
    return all(each is None or tells(each) for each in kinds)


def tells(each: type[Any]) -> bool:
    """Tell it of one class."""
    if is_own(each):
        return not foreign_code(each)
    if source_of(each) is None:
        return False
    module = sys.modules.get(each.__module__)
    others = {home(value) for value in vars(module).values()} - {"", each.__module__} if module else {"?"}
    return all(map(is_known_module, others))


def home(value: Any) -> str:
    """Return the module that a value is, or comes from; nothing for plain values."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    of = (
        getattr(value, "__module__", None)
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
        else None
    )
    return str(of or "")


def foreign_code(each: type[Any]) -> list[tuple[str, Any]]:
    """Return the pieces of a class and of those it derives from that come from no known file."""
    bases = [base for base in each.__mro__ if not base.__module__.startswith(("torch.", "builtins"))]
    return list(foreign(str(getattr(each, "name", each.__name__)), bases, {}))
