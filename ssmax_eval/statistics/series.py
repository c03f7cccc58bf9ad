"""What the rows are of: each gets the name of its series; tasks, cells, prompts and parts of documents as keys."""

import numpy as np
import pandas as pd

from .clusters import BY_TRIAL, with_plan

TASK = ["task", "value", "needles", "haystack", "plan"]  # prompts of two plans are never pooled
CELL = [*TASK, "series", "context_length", "depth_percent"]
PROMPT = [*TASK, "series", "control", "context_length", "depth_percent", "prompt_sha256"]
TEXT = ["text", "text_sha256", "context_length", "window"]
PART = [*TEXT, "series", "document_sha256", "measure", "position_start", "position_end"]


def with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a probe with a `series` column that names what was probed, each prompt or position bin once in its series.

    The model's name, its mechanism if any is not softmax, its RoPE setting if changed; dtype, scoring and weights only where
    they differ between rows of one name, so that what is not the same is never averaged. Column `subject` is the same
    without the RoPE setting.
    """
    mechanism = rows["attention"] + rows["attention_swapped"].map({True: " swapped in", False: ""})
    subject = rows["model"] + (", " + mechanism if (rows["attention"] != "softmax").any() else "")
    rope = rows["rope"].where(rows["rope"] == "as trained", ", " + rows["rope"]).replace("as trained", "")
    series = subject + rope
    for column in ("dtype", "scoring", "fingerprint"):
        if column not in rows:
            continue
        differs = rows.groupby(series)[column].transform("nunique") > 1
        subject = subject.where(~differs, subject + ", " + rows[column])
        series = series.where(~differs, series + ", " + rows[column])
    rows = with_plan(rows.assign(series=series, subject=subject).reset_index(drop=True))
    # of what was run twice, a row with a score before one without, and one that also has attention masses
    has_mass = rows["mass_answer"].notna() if "mass_answer" in rows else rows["error"].isna()
    # and of those, one with all that the attention probe tells today
    whole = rows["top_mass_answer"].notna() if "top_mass_answer" in rows else has_mass
    rows = rows.iloc[np.lexsort((whole, has_mass, rows["error"].isna()))]
    kinds = ((of_prompts(rows), PROMPT), (of_documents(rows), PART))
    once = [part.drop_duplicates(key, keep="last") for part, key in kinds if not part.empty]
    return pd.concat(once).sort_index() if once else rows


def default_baseline(rows: pd.DataFrame) -> str:
    """Return the series to compare with when none is named: the first that is softmax as trained, else as trained, else the first."""
    for kept in (
        rows[
            (rows["attention"] == "softmax") & ~rows["attention_swapped"].astype(bool) & (rows["rope"] == "as trained")
        ],
        rows[rows["rope"] == "as trained"],
        rows,
    ):
        if not kept.empty:
            return str(kept["series"].iloc[0])
    raise AssertionError("no rows")


def of_prompts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are needle prompts, with attention masses or without."""
    return rows[rows["prompt_sha256"].notna()] if "prompt_sha256" in rows else rows.iloc[:0]


def of_documents(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are parts of a document's loss."""
    return rows[rows["measure"].notna()] if "measure" in rows else rows.iloc[:0]


def task_name(rows: pd.DataFrame) -> str:
    """Name the task of rows that share it, for example `multikey, 4 uuids, haystack text, plan 2`."""
    task, value, needles, haystack, plan = rows.iloc[0][TASK]
    what = {"single": value, "digits": "", "recall": ""}.get(task, f"{needles} {value}s")
    return ", ".join(filter(None, [task, what, f"haystack {haystack}", "plan 2" if plan == BY_TRIAL else ""]))
