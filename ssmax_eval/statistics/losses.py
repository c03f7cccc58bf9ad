"""Losses over documents: by position, and the gain of far context."""

import pandas as pd
from scipy import stats

from .clusters import CONFIDENCE
from .kinds import on_documents
from .series import TEXT


@on_documents
def loss_by_position(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and position bin: loss (nats a token, all nats over all tokens), its interval, documents, failed.

    low and high bound the 95% interval of the mean over documents (Student's t): tokens of one document are not independent.
    """
    part = _of_measure(rows, "position")
    return _over_documents(part, part["nll_sum"], [*TEXT, "series", "position_start", "position_end"], "loss")


@on_documents
def context_gain(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and length: the loss of the last `window` tokens with all before them minus with themselves alone.

    context_gain in nats a token, below 0 where the far context helps; interval and counts as in loss_by_position.
    """
    part = _of_measure(rows, "gain")
    return _over_documents(
        part, part["nll_sum"] - part["nll_sum_near"], [*TEXT, "series", "position_end"], "context_gain"
    )


def _of_measure(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the rows of a measure; no rows at all have no columns to go by."""
    return rows[rows["measure"] == measure] if len(rows) else rows.reindex(columns=["nll_sum", "nll_sum_near"])


def _over_documents(rows: pd.DataFrame, nats: pd.Series, by: list[str], name: str) -> pd.DataFrame:
    columns = [*by, name, "low", "high", "documents", "failed"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    whole = {name: "int64" for name in by if name in ("context_length", "window", "position_start", "position_end")}
    rows = rows.astype(whole)  # beside rows of another probe, which lack them, they became floats
    # documents of a bin have equally many tokens, so the mean of their losses is all nats over all tokens
    values = rows.assign(value=nats.astype("float64") / rows["tokens"])
    grouped = values.groupby(by, sort=False)["value"]
    out = grouped.agg(["mean", "count", "size", "sem"]).reset_index()
    half = out["sem"] * stats.t.ppf((1 + CONFIDENCE) / 2, (out["count"] - 1).clip(lower=1))
    out = out.assign(low=out["mean"] - half, high=out["mean"] + half, failed=out["size"] - out["count"])
    return out.rename(columns={"mean": name, "count": "documents"})[columns]
