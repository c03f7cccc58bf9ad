"""Accuracy of cells, lengths and controls, with Wilson intervals."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .series import CELL, TASK

CONFIDENCE = 0.95


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and cell of the grid: trials, scored, failed, accuracy and first_accuracy (0 to 1, NaN if none scored).

    low and high bound accuracy's 95% interval (Wilson, which takes the prompts of a cell as independent).
    Controls are left out; a sample without a score counts as failed and not as wrong.
    """
    grid = rows[rows["control"].isna()]
    return _accuracy(grid, CELL)


def lengths(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and context length over all depths, with the columns of `cells`."""
    return _accuracy(rows[rows["control"].isna()], [name for name in CELL if name != "depth_percent"])


def controls(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series, control and context length, with the columns of `cells`; needle-only pools its lengths."""
    rows = rows[rows["control"].notna()]
    rows = rows.assign(context_length=rows["context_length"].where(rows["control"] != "needle-only"))
    return _accuracy(rows, [*TASK, "series", "control", "context_length"])


def _accuracy(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    columns = [*by, "trials", "scored", "failed", "accuracy", "low", "high", "first_accuracy"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    values = rows.assign(
        scored=rows["correct"].notna(),
        correct=rows["correct"].astype("Float64"),
        first=rows["first_correct"].astype("Float64"),
    )
    grouped = values.groupby(by, sort=False, dropna=False)
    out = grouped.agg(
        trials=("trial", "size"),
        scored=("scored", "sum"),
        accuracy=("correct", "mean"),
        first_accuracy=("first", "mean"),
    ).reset_index()
    out["failed"] = out["trials"] - out["scored"]
    out[["accuracy", "first_accuracy"]] = out[["accuracy", "first_accuracy"]].astype("float64")
    out["low"], out["high"] = wilson(out["accuracy"] * out["scored"], out["scored"])
    return out[columns]


def wilson(right: "pd.Series[float]", scored: "pd.Series[int]") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds of the 95% interval of right / scored (Wilson 1927); NaN where nothing is scored."""
    from statsmodels.stats.proportion import proportion_confint  # a second to import

    n = np.asarray(scored, dtype=float)
    low, high = proportion_confint(np.round(np.nan_to_num(right)), np.maximum(n, 1), 1 - CONFIDENCE, "wilson")
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)
