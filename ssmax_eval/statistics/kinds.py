"""Which rows a function of statistics is about: those of needle prompts, or of documents; others are refused, never dropped."""

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd

from ..errors import UserError

# the probes whose rows are needle prompts, and parts of documents; where no probe is told, the column that tells them
PROMPTS, DOCUMENTS = ("needle", "attention"), ("loss",)
PROMPT_COLUMN, DOCUMENT_COLUMN = "prompt_sha256", "measure"


def of_prompts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are needle prompts, with attention masses or without."""
    return chosen(rows, told(rows, PROMPTS, PROMPT_COLUMN))


def of_documents(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are parts of a document's loss."""
    return chosen(rows, told(rows, DOCUMENTS, DOCUMENT_COLUMN))


def told(rows: pd.DataFrame, probes: tuple[str, ...], column: str) -> "pd.Series[bool]":
    """Tell which rows are of some probes: by their probe, or where that is not told by a column that only these have."""
    named = rows["probe"] if "probe" in rows else pd.Series(None, index=rows.index, dtype=object)
    has = rows[column].notna() if column in rows else pd.Series(False, index=rows.index)
    return named.isin(probes) | (named.isna() & has)


def chosen(rows: pd.DataFrame, which: "pd.Series[bool]") -> pd.DataFrame:
    """Return the chosen rows, without a copy where all are."""
    return rows if which.all() else rows[which]


def about(probes: tuple[str, ...], column: str, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that lets a function take rows of some probes only. Its refusal names it and the others' probes."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def only(rows: pd.DataFrame, *arguments: Any, **given: Any) -> Any:
            if "probe" in rows or column in rows:
                others = rows[~told(rows, probes, column)]
                if len(others):
                    names = sorted(set(others["probe"].dropna())) if "probe" in others else []
                    raise UserError(
                        f"statistics.{function.__name__}: it takes {what}, and {len(others):,} of {len(rows):,} rows are of "
                        f"{', '.join(names) or 'something else'}; give statistics.of_{what.split()[-1]}(rows)"
                    )
            return function(rows, *arguments, **given)

        return only

    return decorate


on_prompts = about(PROMPTS, PROMPT_COLUMN, "needle prompts")
on_documents = about(DOCUMENTS, DOCUMENT_COLUMN, "parts of documents")
