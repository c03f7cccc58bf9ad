"""Statistics of grids: DataFrame in, DataFrame out."""

import pandas as pd

TASK = ["task", "value", "needles", "haystack"]
CELL = [*TASK, "series", "context_length", "depth_percent"]


def with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """Return needle rows with a `series` column that names what was probed, each prompt once in its series.

    The model's name, its law if any is not softmax, its RoPE setting if changed; dtype, scoring and weights only where
    they differ between rows of one name, so that what is not the same is never averaged.
    """
    law = rows["attention"] + rows["attention_swapped"].map({True: " swapped in", False: ""})
    series = rows["model"] + (", " + law if (rows["attention"] != "softmax").any() else "")
    series += rows["rope"].where(rows["rope"] == "as trained", ", " + rows["rope"]).replace("as trained", "")
    for column in ("dtype", "scoring", "fingerprint"):
        differs = rows.groupby(series)[column].transform("nunique") > 1
        series = series.where(~differs, series + ", " + rows[column])
    rows = rows.assign(series=series)
    once = [*TASK, "series", "control", "context_length", "depth_percent", "prompt_sha256"]
    return rows.drop_duplicates(once, keep="last")


def task_name(rows: pd.DataFrame) -> str:
    """Name the task of rows that share it, for example `multikey, 4 uuids, haystack text`."""
    task, value, needles, haystack = rows.iloc[0][TASK]
    what = {"single": value, "digits": "", "recall": ""}.get(task, f"{needles} {value}s")
    return ", ".join(filter(None, [task, what, f"haystack {haystack}"]))


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and cell of the grid: trials, scored, failed, accuracy and first_accuracy (0 to 1, NaN if none scored).

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
    columns = [*by, "trials", "scored", "failed", "accuracy", "first_accuracy"]
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
    return out[columns]
