"""Partial answers and metrics: the share of the asked values that are right, and what was written against what was expected."""

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from ...data.own import says
from ...rows import Fields

if TYPE_CHECKING:
    from ...data.prompts import Prompt

METRICS = ("contains", "f1")
TO_WRITE = 128  # tokens of an answer that words are looked for in, as RULER's
SIGNS = "#%&@*‰"  # punctuation that can be part of an answer as symbols are: C#, 50%
MINUS, VARIATION = "\u2212", "\ufe0e\ufe0f"
# blocks of scripts that put no space between words: each character is a word
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


def judged(scoring: str, prompt: "Prompt", score: Fields) -> Fields:
    """Return a prompt's score with its `credit`, and where scoring is a metric of what was written, `correct` by that.

    contains: the answer's words stand in it, one after the other (8,106,422 is three words, so not 8106422); credit is the share
    of several values. f1: credit is the F1 of its first line's words against the answer's (Rajpurkar et al. 2016, arXiv
    1606.05250, without dropping English articles), and it is correct where the words are the same.
    """
    if scoring not in METRICS or score.get("correct") is None:
        kept = {name: value for name, value in score.items() if scoring in METRICS or name != "cut"}
        return kept | {"credit": credit(prompt, score)}
    written = score["predicted"] or ""
    if scoring == "contains":
        found = [contains(written, value) for value in values_of(prompt)]
        return score | {"correct": all(found), "credit": sum(found) / len(found)}
    line = next(filter(str.strip, written.splitlines()), "")
    return score | {"correct": is_same(line, prompt.expected), "credit": f1(line, prompt.expected)}


def credit(prompt: "Prompt", score: Fields) -> float | None:
    """Return the share of the asked values that are right, 0 to 1; None without a score.

    Forced: a value is right if all of its tokens are. Generated: if what was written says it.
    """
    if score.get("correct") is None or score["correct"]:
        return None if score.get("correct") is None else 1.0
    if score["answer_ranks"] is None:
        values = values_of(prompt)
        return sum(says(score["predicted"] or "", value) for value in values) / len(values)
    found = [not any(score["answer_ranks"][start:end]) for start, end in prompt.values]
    return sum(found) / len(found)


def values_of(prompt: "Prompt") -> list[str]:
    """Return the values that a prompt asks for."""
    return prompt.expected.split(", ") if len(prompt.values) > 1 else [prompt.expected]


def contains(text: str, wanted: str) -> bool:
    """Tell whether a text has the wanted words, one after the other; case and punctuation do not count."""
    asked, there = words(wanted, wanted), words(text, wanted)
    return bool(asked) and f" {' '.join(asked)} " in f" {' '.join(there)} "


def is_same(text: str, wanted: str) -> bool:
    """Tell whether a text has the wanted words and no others."""
    return words(text, wanted) == words(wanted, wanted)


def f1(text: str, wanted: str) -> float:
    """Return the harmonic mean of the share of a text's words that are wanted and of the wanted ones that it has, 0 to 1."""
    there, asked = words(text, wanted), words(wanted, wanted)
    common = sum((Counter(there) & Counter(asked)).values())
    return 2 * common / (len(there) + len(asked)) if common else 0.0


def signs_of(wanted: str) -> set[str]:
    """Return the symbols of an answer, an emoji or what is C# and not C: of a text compared with it they count as words."""
    return {each for each in folded(wanted) if each in SIGNS or unicodedata.category(each)[0] == "S"} - {"`", "\u2044"}


def folded(text: str) -> str:
    """Return a text case folded, its minus signs unlike hyphens."""
    return re.sub(r"(?<!\w)-(?=\d)", MINUS, unicodedata.normalize("NFKC", text).casefold())


def words(text: str, wanted: str = "") -> list[str]:
    """Return a text's words in any script, case folded: runs of letters, marks and digits; where none are spaced, characters.

    wanted: the answer that it is compared with. Each symbol that is in it is a word; others are left out, as in texts without.
    """
    signs = signs_of(wanted)
    found: list[str] = []
    follows = goes_on = False  # the last character was of a word; and the next one is of the same
    for character in folded(text):
        kind = unicodedata.category(character)[0]
        if kind == "M" and follows:
            found[-1] += "" if character in VARIATION else character
        elif character in signs:
            found.append(character)
            follows, goes_on = True, False
        elif kind in "LMN":
            apart = any(first <= ord(character) <= last for first, last in UNSPACED)
            if goes_on and not apart:
                found[-1] += character
            else:
                found.append(character)
            follows, goes_on = True, not apart
        else:
            follows = goes_on = False
    return found
