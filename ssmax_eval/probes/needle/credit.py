"""Partial answers: the share of the asked values that are right."""

from typing import TYPE_CHECKING

from ...rows import Fields

if TYPE_CHECKING:
    from ...data.prompts import Prompt


def credit(prompt: "Prompt", score: Fields) -> float | None:
    """Return the share of the asked values that are right, 0 to 1; None without a score.

    Forced: a value is right if all of its tokens are. Generated: if it is in what was written, as RULER counts (string_match_all).
    """
    if score.get("correct") is None or score["correct"]:
        return None if score.get("correct") is None else 1.0
    if score["answer_ranks"] is None:
        values = prompt.expected.split(", ") if len(prompt.values) > 1 else [prompt.expected]
        return sum(value in (score["predicted"] or "") for value in values) / len(values)
    found = [not any(score["answer_ranks"][start:end]) for start, end in prompt.values]
    return sum(found) / len(found)
