"""What held-out prompts say of the setting that a race chose: what it gains, what it loses, and what is then advised."""

from typing import Any

import pandas as pd

from .. import statistics
from ..setting import Setting
from .advise import AS_TRAINED, Advice


def gains(advice: Advice) -> pd.DataFrame:
    """Return how much more the setting finds than the model as trained, a line a check (statistics.compare).

    Beyond the training length; over all lengths where that is not known, or no prompt beyond has a score.
    """
    rows = advice.held_out
    return against(advice, rows[rows["context_length"] > decisive(advice)])


def at_trained_lengths(advice: Advice) -> pd.DataFrame:
    """Return the same at the other lengths; no line where there is none."""
    rows = advice.held_out
    return against(advice, rows[rows["context_length"] <= decisive(advice)])


def decisive(advice: Advice) -> int:
    """Return the length beyond which a gain decides: the training length, or 0 where all lengths do."""
    known = statistics.compare(advice.held_out, advice.own, ("context_length",))["context_length"]
    longest = advice.train_length or 0
    return longest if (known > longest).any() else 0


def against(advice: Advice, rows: pd.DataFrame) -> pd.DataFrame:
    return with_check(statistics.compare(rows, advice.own, ()))


def with_check(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the name of each line's check: what was asked, in which haystack."""
    return table.assign(check=[check_of(line) for line in table[["task", "haystack"]].to_dict("records")])


def check_of(line: "pd.Series[Any] | dict[str, Any]") -> str:
    return f"{line['task']}, {line['haystack']}"


def helps(advice: Advice) -> bool:
    """Tell whether the setting finds more on prompts that decided nothing, beyond chance, at the lengths that decide (gains)."""
    return advice.setting != AS_TRAINED and bool(gains(advice).iloc[0]["low"] > 0)


def loses(advice: Advice) -> bool:
    """Tell whether it finds less at the lengths that were trained, beyond chance."""
    return bool((at_trained_lengths(advice)["high"].iloc[:1] < 0).any())


def advised(advice: Advice, context_length: int) -> Setting:
    """Return what advice reads a text of so many tokens with."""
    trained = context_length <= decisive(advice)
    return AS_TRAINED if not helps(advice) or (trained and loses(advice)) else advice.setting


def checks(advice: Advice) -> pd.DataFrame:
    """Return accuracy with its interval, a line for each check, series and length."""
    found = with_check(statistics.lengths(advice.held_out))
    return found[["check", "series", "context_length", "accuracy", "low", "high", "scored"]]
