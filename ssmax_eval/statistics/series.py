"""What the rows are of: each gets the name of its series; tasks, cells, prompts and parts of documents as keys."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from .clusters import BY_TRIAL, numbered, with_plan
from .kinds import is_document, is_prompt, where

TASK = ["task", "value", "needles", "haystack", "plan"]  # prompts of two plans are never pooled
CELL = [*TASK, "series", "context_length", "depth_percent"]
PROMPT = [*TASK, "series", "control", "context_length", "depth_percent", "prompt_sha256"]
TEXT = ["text", "text_sha256", "context_length", "window"]
JUDGED = ["key_context", "key_judge", "key_judge_fingerprint"]
PART = [*TEXT, "series", "document_sha256", "measure", "position_start", "position_end", *JUDGED]
SAMPLE = ["probe", "run_id", "sample"]
# all that a series' name is made of, and what it cannot be without
NAMED = ("model", "attention", "attention_swapped", "rope", "dtype", "scoring", "chat", "fingerprint")
NEEDED = NAMED[:4]


def with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a probe with a `series` column that names what was probed, each prompt or position bin once in its series.

    `label (mechanism, ...)`: the model's name, its mechanism if any is not softmax, its RoPE setting if changed; dtype, scoring,
    chat template and weights only where they differ between rows of one name, so that what is not the same is never averaged.
    Column `subject` is the same without the RoPE setting.
    """
    if missing := next((name for name in NEEDED if name not in rows), None):
        raise UserError(
            f"statistics.with_series: the rows have no column {missing!r}; give rows as load_results returns them"
        )
    rows = uncategorical(rows)
    named = told(rows, NAMED)
    number = numbered(*(named[name] for name in named))
    each = named.iloc[np.unique(number, return_index=True)[1]]  # one row of all that are named alike
    known = each["attention"].notna()  # else nobody can look into it: a function, a server
    mechanism = (each["attention"] + each["attention_swapped"].map({True: " swapped in", False: ""})).where(known)
    others = (each["attention"][known] != "softmax").any()
    shown = mechanism.where(known & others)
    parts = {"subject": [shown], "series": [shown, each["rope"].where(each["rope"] != "as trained")]}
    names = {name: joined(each["model"], of) for name, of in parts.items()}
    for column in ("dtype", "scoring", "chat", "fingerprint"):
        if column not in each:
            continue
        known_only = column != "chat"  # without a template is a way to read, too
        differs = each[column].groupby(names["series"]).transform(lambda of, dropna: of.nunique(dropna), known_only) > 1
        for name, own in parts.items():
            own.append(each[column].where(differs))
            names[name] = joined(each["model"], own)
    of_rows = {name: own.array.take(number) for name, own in names.items()}
    rows = with_plan(rows.reset_index(drop=True).assign(**of_rows))
    # of what was run twice, a row with a score before one without, and one that also has attention masses
    has_mass = rows["mass_answer"].notna() if "mass_answer" in rows else rows["error"].isna()
    # and of those, one with all that the attention probe tells today
    whole = rows["top_mass_answer"].notna() if "top_mass_answer" in rows else has_mass
    # of these, one whose attention was given back
    again = rows["restored"].notna() if "restored" in rows else whole
    order = np.lexsort((again, whole, has_mass, rows["error"].isna()))
    known = pd.Series(False, index=rows.index)
    once = []
    for is_ours, key in ((is_prompt(rows), PROMPT), (is_document(rows), PART)):
        if is_ours.any():
            ours = order[is_ours.to_numpy()[order]]
            twice = (
                numbered(*(rows[name] for name in key if name in rows)).iloc[ours].duplicated(keep="last").to_numpy()
            )
            once.append(ours[~twice])
        known |= is_ours
    # rows of other probes are what they are; of the same run, each once
    if not known.all() and {*SAMPLE} <= {*rows}:
        theirs = order[~known.to_numpy()[order]]
        twice = numbered(*(rows[name] for name in SAMPLE)).iloc[theirs].duplicated(keep="last").to_numpy()
        once.append(theirs[~twice])
        known[:] = True
    kept = np.sort(np.concatenate([*once, np.flatnonzero(~known)]))
    return rows if len(kept) == len(rows) else rows.iloc[kept]


def joined(labels: "pd.Series[Any]", parts: list["pd.Series[Any]"]) -> "pd.Series[Any]":
    """Return names `label (part, part)` of labels and their parts, those that are missing left out."""
    names = []
    for label, *own in zip(labels, *parts, strict=True):
        there = [str(each) for each in own if not pd.isna(each)]
        names.append(f"{label} ({', '.join(there)})" if there else label)
    return pd.Series(names, labels.index, dtype=object)


def uncategorical(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows without categories: groups of them would have those that no row is of."""
    kinds = {name: kind.categories.dtype for name, kind in rows.dtypes.items() if isinstance(kind, pd.CategoricalDtype)}
    return rows.astype(kinds) if kinds else rows


def default_baseline(rows: pd.DataFrame) -> str:
    """Return the series to compare with when none is named: the first that is softmax as trained, else as trained, else the first."""
    as_trained = rows["rope"] == "as trained"
    softmax = as_trained & (rows["attention"] == "softmax") & ~rows["attention_swapped"].astype(bool)
    first = next((int(kept.to_numpy().argmax()) for kept in (softmax, as_trained) if kept.any()), 0)
    return str(rows["series"].iloc[first])


def of_grid(rows: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return the rows that are no controls, with those of the columns that there are: texts are not copied to count answers."""
    return where(told(rows, columns), rows["control"].isna())


def told(rows: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return those of the columns that there are."""
    return rows[[name for name in dict.fromkeys(columns) if name in rows]]


def tasks(rows: pd.DataFrame, by: list[str] = TASK) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Yield each task with its rows, without a copy where there is one alone."""
    if len(rows) and rows[by].notna().all(axis=None) and not numbered(*(rows[name] for name in by)).any():
        yield tuple(rows[by].iloc[0]), rows
    else:
        yield from rows.groupby(by, sort=False)


WHAT = {  # of a task and its needles: what is hidden and what is asked for
    "single": "one {value}",
    "multikey": "one of {needles} {value}s",
    "multivalue": "all {needles} {value}s of one key",
    "multiquery": "{needles} {value}s of {needles} keys",
    "choice": "one of {needles} choices",
}
WHERE = {
    "text": "in generated prose",
    "noise": "in random words",
    "repeat": "in repeated sentences",
    "bible": "in Bible text",
}


def where_of(haystack: str) -> str:
    """Say where a haystack's or a document's text comes from, as in `in generated prose`."""
    return WHERE.get(haystack, f"in {haystack}")


def task_name(rows: pd.DataFrame) -> str:
    """Name the task of rows that share it: the option's word, then plain ones, as in `multikey (one of 4 uuids), in random words`."""
    task, value, needles, haystack, plan = rows.iloc[0][TASK]
    what = WHAT.get(task, "").format(value=value, needles=f"{needles:.0f}")
    where = "" if haystack == task else where_of(haystack)
    own = "" if plan == BY_TRIAL else "each prompt its own haystack"
    return ", ".join(filter(None, [f"{task} ({what})" if what else str(task), where, own]))
