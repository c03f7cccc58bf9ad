"""What held-out prompts say of the settings that a race chose: what they gain, what they lose, and what is then advised."""

from typing import Any

import pandas as pd

from .. import statistics
from ..setting import Setting
from .advise import AS_TRAINED, Advice


def gains(advice: Advice) -> pd.DataFrame:
    """Return how much more the model finds as advised than as trained, a line a check (statistics.compare).

    Beyond the training length; over all lengths where that is not known, or no prompt beyond has a score.
    """
    rows = advice.held_out
    return against(advice, rows[rows["context_length"] > decisive(advice)])


def at_trained_lengths(advice: Advice) -> pd.DataFrame:
    """Return the same of those other lengths that the race did not leave as trained; no line where there is none."""
    rows = advice.held_out
    changed = [length for length in advice.settings if advice.at(length) != AS_TRAINED]
    return against(advice, rows[(rows["context_length"] <= decisive(advice)) & rows["context_length"].isin(changed)])


def decisive(advice: Advice) -> int:
    """Return the length beyond which a gain decides: the training length, or 0 where all lengths do."""
    longest = advice.train_length or 0
    return longest if any(length > longest for length in compared(advice)) else 0


def compared(advice: Advice) -> list[int]:
    """Return the lengths at which the first check, the same task, has prompts with a score in both series."""
    _, first = next(iter(statistics.tasks(advice.held_out)))
    return [*statistics.compare(first, advice.own, ("context_length",))["context_length"]]


def deciding(table: pd.DataFrame, advice: Advice) -> pd.DataFrame:
    """Return the first check's line of gains or at_trained_lengths; none where no prompt could be compared."""
    return table[table["check"] == check_of(advice.held_out.iloc[0])]


def beyond_words(length: int) -> str:
    """Say beyond which length a gain decides."""
    return f"beyond the {length:,} tokens it was trained at" if length else "over all lengths"


def against(advice: Advice, rows: pd.DataFrame) -> pd.DataFrame:
    return with_check(statistics.compare(rows, advice.own, ()))


def with_check(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the name of each line's check: what was asked, in which haystack."""
    return table.assign(check=[check_of(line) for line in table[["task", "haystack"]].to_dict("records")])


def check_of(line: "pd.Series[Any] | dict[str, Any]") -> str:
    return f"{line['task']}, {line['haystack']}"


def helps(advice: Advice) -> bool:
    """Tell whether more is found as advised, beyond chance, on prompts that decided nothing at the lengths that decide (gains)."""
    return advice.setting != AS_TRAINED and bool((deciding(gains(advice), advice)["low"] > 0).any())


def loses(advice: Advice) -> bool:
    """Tell whether less is found at the lengths that were trained, beyond chance."""
    return bool((deciding(at_trained_lengths(advice), advice)["high"] < 0).any())


def advised(advice: Advice, context_length: int) -> Setting:
    """Return what advice reads a text of so many tokens with."""
    trained = context_length <= decisive(advice)
    return AS_TRAINED if not helps(advice) or (trained and loses(advice)) else advice.at(context_length)


def checks(advice: Advice) -> pd.DataFrame:
    """Return accuracy with its interval, a line for each check, series and length."""
    found = with_check(statistics.lengths(advice.held_out))
    return found[["check", "series", "context_length", "accuracy", "low", "high", "scored"]]
