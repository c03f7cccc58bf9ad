"""Names that are nearly right."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the known name nearest to one that is not known; nothing where none is near."""
    near = difflib.get_close_matches(name, [*known], 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""
