"""Which code a law runs: edited code is another law, and rows of what cannot be told from an edited one are not served again."""

import hashlib
import inspect
from contextlib import suppress
from typing import Any

from ..attention.laws import Law, parse_law
from .known_code import code_hash, foreign


def user_law_source(law: str) -> str | None:
    """Return a sha256 over the code of a law that is not this package's own. None for those of laws.py as they came."""
    law_class, _ = parse_law(law)
    found = foreign_code(law_class)
    if not found and law_class.__module__ == Law.__module__:
        return None
    parts = sorted(f"{where} {code_hash(code)}" for where, code in found)
    with suppress(OSError, TypeError):  # typed into a prompt: only its compiled code can be seen
        parts.append(inspect.getsource(law_class))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def told_law(law: str | None) -> bool:
    """Tell whether a law's code can be told from an edited one's: this package's own as it came, or a class in a file."""
    if law is None:
        return True
    law_class, _ = parse_law(law)
    if law_class.__module__ == Law.__module__:
        return not foreign_code(law_class)
    try:
        return bool(inspect.getsource(law_class))
    except (OSError, TypeError):
        return False


def foreign_code(law_class: type[Law]) -> list[tuple[str, Any]]:
    """Return the pieces of a law's class and of those it derives from that come from no known file."""
    return list(foreign(law_class.name, [each for each in law_class.__mro__ if issubclass(each, Law)], {}))
