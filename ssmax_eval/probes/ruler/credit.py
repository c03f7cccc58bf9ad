"""RULER's metric: the share of the references that stand in what was written (string_match_all)."""

import re
from collections.abc import Sequence


def share_found(written: str, references: Sequence[str]) -> float:
    """Return the share of references in a text, 0 to 1: as parts of it, in any case, control characters read as line ends."""
    text = re.sub(r"[\x00-\x1f]", "\n", written.strip()).strip().lower()
    return sum(each.lower() in text for each in references) / len(references)
