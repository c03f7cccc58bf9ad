"""Which rows a function of statistics is about: those of needle prompts, or of documents; others are refused, never dropped."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import pandas as pd

from ..errors import UserError
from ..rows import TOLD_BY

F = TypeVar("F", bound=Callable[..., Any])
# the column that tells needle prompts, and parts of documents
PROMPT_COLUMN, DOCUMENT_COLUMN = "prompt_sha256", "measure"


def of_prompts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are needle prompts, with attention masses or without."""
    return where(rows, is_prompt(rows))


def of_documents(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are parts of a document's loss."""
    return where(rows, is_document(rows))


def is_prompt(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Tell which rows are needle prompts."""
    return are_told_by(rows, PROMPT_COLUMN)


def is_document(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Tell which rows are parts of a document's loss."""
    return are_told_by(rows, DOCUMENT_COLUMN)


def are_told_by(rows: pd.DataFrame, column: str) -> "pd.Series[bool]":
    """Tell which rows are of a probe whose rows this column tells; where no probe is known, those that have it."""
    probes = [name for name, told_by in TOLD_BY.items() if told_by == column]
    return are_of(rows if TOLD_BY else rows.drop(columns="probe", errors="ignore"), probes, column)


def are_of(rows: pd.DataFrame, probes: Sequence[str], column: str) -> "pd.Series[bool]":
    """Tell which rows are of some probes: by their probe, or where that is not told by a column that only these have."""
    has = rows[column].notna() if column in rows else pd.Series(False, index=rows.index)
    return has if "probe" not in rows else rows["probe"].isin(probes) | (rows["probe"].isna() & has)


def where(rows: pd.DataFrame, chosen: "pd.Series[bool]") -> pd.DataFrame:
    """Return the chosen rows, without a copy where all are."""
    return rows if chosen.all() else rows[chosen]


def about(column: str, other: str, what: str) -> Callable[[F], F]:
    """Return a decorator that lets a function take rows of some probes only. Its refusal names it and the others' probes."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def only(rows: Any, *arguments: Any, **given: Any) -> Any:
            if isinstance(rows, pd.DataFrame) and any(name in rows for name in ("probe", column, other)):
                others = rows[~are_told_by(rows, column)]
                if len(others):
                    names = sorted(set(others["probe"].dropna())) if "probe" in others else []
                    raise UserError(
                        f"statistics.{function.__name__}: it takes {what}, and {len(others):,} of {len(rows):,} rows are of "
                        f"{', '.join(names) or 'something else'}; give statistics.of_{what.split()[-1]}(rows)"
                    )
            return function(rows, *arguments, **given)

        return cast(F, only)

    return decorate


on_prompts = about(PROMPT_COLUMN, DOCUMENT_COLUMN, "needle prompts")
on_documents = about(DOCUMENT_COLUMN, PROMPT_COLUMN, "parts of documents")
