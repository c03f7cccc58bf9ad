"""Accuracy of cells, lengths and controls, with Wilson's intervals, over trials where prompts of one are pooled."""

import numpy as np
import pandas as pd

from .clusters import BY_TRIAL, CONFIDENCE, FEWEST, PLACE, Floats, effective_size, trials, with_plan
from .kinds import on_prompts
from .series import CELL, TASK, of_grid, told

COUNTED = [*CELL, *PLACE, "control", "correct", "first_correct", "credit"]


@on_prompts
def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and cell of the grid: trials, scored, failed, accuracy and first_accuracy (0 to 1, NaN if none scored).

    low and high bound accuracy's 95% interval (Wilson, which takes the prompts of a cell as independent; with plan 2 each is
    a trial of its own, and trials of overlapping text count as one). Fewer than FEWEST trials with several prompts each
    give no interval: 0 to 1.
    credit: the mean share of the asked values that are right; NaN where the rows do not tell it.
    Controls are left out; a sample without a score counts as failed and not as wrong.
    """
    return accuracies(of_grid(rows, COUNTED), CELL)


@on_prompts
def lengths(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and context length over all depths, with the columns of `cells`.

    With plan 2 the depths of a trial share its haystack: trials counts trials, and the interval is Wilson's of as many
    prompts as these are worth (clusters.effective_size; of Franco et al. 2019's comparison, J. Surv. Stat. Methodol. 7, 334).
    """
    return accuracies(of_grid(rows, COUNTED), [name for name in CELL if name != "depth_percent"])


@on_prompts
def controls(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series, control and context length, with the columns of `cells`; needle-only pools its lengths."""
    rows = told(rows, COUNTED)[rows["control"].notna()]
    rows = rows.assign(context_length=rows["context_length"].where(rows["control"] != "needle-only"))
    return accuracies(rows, [*TASK, "series", "control", "context_length"])


def accuracies(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return one line per group of `by`, with the columns of `cells`. rows: those of COUNTED, and what `by` names."""
    columns = [*by, "trials", "scored", "failed", "accuracy", "low", "high", "first_accuracy", "credit"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    rows = with_plan(rows)
    values = rows.assign(
        scored=rows["correct"].notna(),
        correct=rows["correct"].astype("Float64"),
        first=rows["first_correct"].astype("Float64"),
        credit=rows["credit"].astype("float64") if "credit" in rows else np.nan,
    )
    grouped = values.groupby(by, sort=False, dropna=False)
    out = grouped.agg(
        trials=("trial", "size"),
        scored=("scored", "sum"),
        accuracy=("correct", "mean"),
        first_accuracy=("first", "mean"),
        credit=("credit", "mean"),
    ).reset_index()
    out["failed"] = out["trials"] - out["scored"]
    out[["accuracy", "first_accuracy"]] = out[["accuracy", "first_accuracy"]].astype("float64")
    out["low"], out["high"] = wilson(np.round(np.nan_to_num(out["accuracy"] * out["scored"])), out["scored"])
    if (out["plan"] == BY_TRIAL).any():
        over_trials(out, values, grouped.ngroup())
    return out[columns]


def over_trials(out: pd.DataFrame, values: pd.DataFrame, line: "pd.Series[int]") -> None:
    """Count the trials of lines of plan 2, and where some have several prompts of a line, let its interval be over trials.

    out: the lines. values: the prompts. line: the place in `out` of each prompt's line.
    """
    by_trial = (out["plan"] == BY_TRIAL).to_numpy()
    unit = trials(values, line)
    out.loc[by_trial, "trials"] = unit.groupby(line).nunique()[by_trial]
    if not values["scored"].all():  # what has no score joins no two trials that have
        values, line = values[values["scored"]], line[values["scored"]]
        unit = trials(values, line)
    counts = unit.groupby(line).agg(["nunique", "size"])
    shared = counts.index[(counts["nunique"] < counts["size"]) & by_trial[counts.index]]
    if shared.empty:
        return
    right, of_line = values["correct"].to_numpy(dtype=float), values.groupby(line).indices
    sizes = np.array([effective_size(right[of_line[each]], unit.to_numpy()[of_line[each]]) for each in shared])
    low, high = wilson(out.loc[shared, "accuracy"].to_numpy() * sizes, sizes)
    few = counts.loc[shared, "nunique"].to_numpy() < FEWEST
    out.loc[shared, "low"], out.loc[shared, "high"] = np.where(few, 0.0, low), np.where(few, 1.0, high)


def wilson(right: "pd.Series[float] | Floats", scored: "pd.Series[float] | Floats") -> tuple[Floats, Floats]:
    """Return the bounds of the 95% interval of right / scored (Wilson 1927); NaN where nothing is scored."""
    from statsmodels.stats.proportion import proportion_confint  # a second to import

    n = np.asarray(scored, dtype=float)
    low, high = proportion_confint(np.asarray(right), np.maximum(n, 1), 1 - CONFIDENCE, "wilson")
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)
