"""The one exception a user can cause, and what they may have meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input, said in one line: what, the value, what is allowed, what to do. The CLI exits with 2."""


def nearest(given: str, allowed: Iterable[str], alike: float = 0.6) -> str:
    """Return `; did you mean X?` for what is spelled nearly as one of those allowed; nothing where none is. alike: 0 to 1."""
    near = difflib.get_close_matches(given, list(allowed), 1, alike)
    return f"; did you mean {near[0]}?" if near else ""
