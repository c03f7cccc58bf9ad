"""Which code a mechanism runs: edited code is another one, and rows of what cannot be told from an edited one are not served again."""

import hashlib
import inspect
from contextlib import suppress
from typing import Any

from ..mechanisms.mechanism import Mechanism
from ..mechanisms.registry import Attention, is_own
from .known_code import code_hash, foreign


def mechanism_source(attention: Attention | None) -> str | None:
    """Return a sha256 over the code of a mechanism that is not this package's own. None for its own as they came."""
    if attention is None:
        return None
    found = foreign_code(attention.mechanism)
    if not found and is_own(attention.mechanism):
        return None
    parts = sorted(f"{where} {code_hash(code)}" for where, code in found)
    with suppress(OSError, TypeError):  # typed into a prompt: only its compiled code can be seen
        parts.append(inspect.getsource(attention.mechanism))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_told(attention: Attention | None) -> bool:
    """Tell whether a mechanism's code can be told from an edited one's: this package's own as it came, or a class in a file."""
    if attention is None:
        return True
    if is_own(attention.mechanism):
        return not foreign_code(attention.mechanism)
    try:
        return bool(inspect.getsource(attention.mechanism))
    except (OSError, TypeError):
        return False


def foreign_code(mechanism: type[Mechanism]) -> list[tuple[str, Any]]:
    """Return the pieces of a mechanism's class and of those it derives from that come from no known file."""
    return list(foreign(mechanism.name, [each for each in mechanism.__mro__ if issubclass(each, Mechanism)], {}))
