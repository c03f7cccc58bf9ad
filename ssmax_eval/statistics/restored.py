"""What attention given back repairs, and what attention taken away breaks: by axis and length, beside as many other heads."""

from typing import Any

import pandas as pd

from .causes import CAUSES, FOUND
from .grids import COUNTED, accuracies
from .kinds import on_prompts
from .series import TASK, of_grid

OTHERS = "/others"  # behind an axis: the same given to as many other heads
WHOLE = "together"  # the axis of all that is given to heads
TURNED = ["prompts", "turned", "share", "low", "high"]


@on_prompts
def restored(rows: pd.DataFrame, by: tuple[str, ...] = ("series", "context_length")) -> pd.DataFrame:
    """Return how many prompts' verdicts turn when heads get back what they have at the training length, or lose it.

    One line per group of `by` (series and context length; of () all are pooled, and a trial that several series read is one
    trial), done (`given` back, `taken` away), axis and was (`wrong`, `right`: the prompt as it
    is): prompts, turned (repaired of those that were wrong, broken of those that were right), their share with its 95%
    interval low, high (as `lengths` has it), and the same of as many other heads: others_turned, others_share, others_low,
    others_high; NaN where an axis has no such control.
    """
    key = [*TASK, *by, "done", "axis", "was"]
    told = pd.concat([long(rows, "restored", "given"), long(rows, "taken", "taken")], ignore_index=True)
    columns = [*key, *TURNED, *(f"others_{name}" for name in TURNED[1:])]
    if told.empty:
        return pd.DataFrame(columns=columns)
    found = accuracies(told, key).rename(columns={"scored": "prompts", "accuracy": "share"})
    found["turned"] = (found["share"] * found["prompts"]).fillna(0).round().astype(int)
    is_control = found["axis"].str.endswith(OTHERS)
    control = found[is_control].assign(axis=found["axis"].str.removesuffix(OTHERS))
    control = control[[*key, *TURNED[1:]]].rename(columns={name: f"others_{name}" for name in TURNED})
    return found[~is_control].merge(control, on=key, how="left")[columns]


def long(rows: pd.DataFrame, column: str, done: str) -> pd.DataFrame:
    """Return a line for each prompt and reading of a column of verdicts; `correct` tells whether the verdict turned."""
    grid = of_grid(rows, [*COUNTED, column])
    if column not in grid:
        return pd.DataFrame()
    grid = grid[grid[column].map(lambda each: isinstance(each, dict)) & grid["correct"].notna()]
    lines: list[dict[str, Any]] = []
    for row in grid.to_dict("records"):
        was = bool(row["correct"])
        for axis, verdict in row.pop(column).items():
            turned = None if verdict is None else bool(verdict) != was
            told = {"done": done, "axis": axis, "was": "right" if was else "wrong"}
            lines.append({**row, **told, "correct": turned, "first_correct": turned})
    return pd.DataFrame(lines)


def restored_causes(explained: pd.DataFrame) -> dict[tuple[str, str], tuple[int, int]]:
    """Return, by series and cause of failure, how many prompts all that heads get back repairs, and of how many.

    explained: statistics.with_causes, with the rows' `restored`.
    """
    if "restored" not in explained:
        return {}
    verdict = explained["restored"].map(lambda each: each.get(WHOLE) if isinstance(each, dict) else None)
    known = explained.assign(repaired=verdict)[verdict.notna() & (explained["cause"] != FOUND)]
    grouped = known.groupby(["series", "cause"], sort=False)["repaired"].agg(["sum", "size"])
    return {
        (str(series), cause): (int(line["sum"]), int(line["size"]))
        for series in known["series"].unique()
        for cause in CAUSES
        if (series, cause) in grouped.index
        for line in [grouped.loc[(series, cause)]]
    }
