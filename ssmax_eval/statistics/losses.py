"""Losses over documents: by position, on key tokens, and the gain of far context."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from .clusters import CONFIDENCE, FEWEST
from .kinds import on_documents
from .series import JUDGED, TEXT

ITSELF = "itself"  # as the rows have it: each model says for itself which tokens are key


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


@on_documents
def mean_loss(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series: loss, all nats over all tokens of its documents, its interval, documents, failed."""
    part = _of_measure(rows, "position")
    columns = [*TEXT, "series", "loss", "low", "high", "documents", "failed"]
    if part.empty:
        return pd.DataFrame(columns=columns)
    by = [*TEXT, "series", "document_sha256"]
    sums = part.groupby(by, sort=False, dropna=False)[["nll_sum", "tokens"]]
    whole = sums.sum(min_count=1).where(sums.count().eq(sums.size(), axis=0)).reset_index()
    return pd.DataFrame(
        [
            dict(zip([*TEXT, "series"], key, strict=True))
            | dict(zip(("loss", "low", "high"), over_clusters(each["nll_sum"], each["tokens"]), strict=True))
            | _counts(each["nll_sum"])
            for key, each in whole.groupby([*TEXT, "series"], sort=False, dropna=False)
        ],
        columns=columns,
    )


@on_documents
def same_tokens(rows: pd.DataFrame) -> list[list[str]]:
    """Return the series of one text and length, those together that read the same tokens; the losses of others cannot be compared.

    Another tokenizer makes other tokens of the documents of a seed. Series that have no document of one seed and name in common
    read other parts of one text, and count as the same where nothing says otherwise.
    """
    groups: list[tuple[list[str], dict[Any, str]]] = []
    for name, part in rows.groupby("series", sort=False):
        each = part.drop_duplicates(["seed", "document"])
        own = dict(zip(zip(each["seed"], each["document"], strict=True), each["document_sha256"], strict=True))
        for names, known in groups:
            if all(known.get(key, own[key]) == own[key] for key in own):
                names.append(str(name))
                known.update(own)
                break
        else:
            groups.append(([str(name)], own))
    return [names for names, _ in groups]


@on_documents
def key_loss(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and judge: the loss on key tokens, and how many of them there are.

    key_loss: nats a token, all nats over all key tokens; low, high: its interval. key_tokens: of a document, in the mean;
    key_tokens_low, key_tokens_high. share: of all tokens that could be key. judges: whether the series has the judge's weights
    or judges itself, which chooses tokens that it predicts well, so that its key_loss is too low. documents, failed.
    """
    part = _of_measure(rows, "key")
    columns = [
        *TEXT, *JUDGED, "series", "key_loss", "low", "high", "key_tokens", "key_tokens_low", "key_tokens_high", "share",
        "judges", "documents", "failed",
    ]  # fmt: skip
    lines = []
    for key, each in part.groupby([*TEXT, *JUDGED, "series"], sort=False, dropna=False) if len(part) else ():
        named = dict(zip([*TEXT, *JUDGED, "series"], key, strict=True))
        known = each[each["nll_sum"].notna()]
        count, could = known["tokens"].astype(float), known["position_end"] - known["position_start"]
        itself = named["key_judge"] == ITSELF or (each["fingerprint"] == named["key_judge_fingerprint"]).any()
        loss = of_enough(over_clusters(each["nll_sum"], each["tokens"]), known["tokens"])
        mean, *bounds = over_clusters(count, pd.Series(1.0, index=count.index))
        number = mean, *(float(np.maximum(0, bound)) for bound in bounds)  # NaN stays
        lines.append(
            named
            | dict(zip(("key_loss", "low", "high"), loss, strict=True))
            | dict(zip(("key_tokens", "key_tokens_low", "key_tokens_high"), number, strict=True))
            | {"share": float(count.sum() / could.sum()) if len(known) else math.nan}
            | {"judges": bool(itself)}
            | _counts(each["nll_sum"])
        )
    return pd.DataFrame(lines, columns=columns)


@on_documents
def compare_key_loss(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return one line per judge and series but the baseline: its loss on key tokens minus the baseline's, on the same tokens.

    difference in nats a token, its interval with documents as clusters; documents: in which both have a loss on exactly the same
    tokens; others: in which the tokens differ. There is no line where each model judged itself: their tokens differ.
    """
    part = _of_measure(rows, "key")
    columns = [*TEXT, *JUDGED, "series", "difference", "low", "high", "documents", "others"]
    lines = []
    by = [*TEXT, *JUDGED]
    for key, each in part.groupby(by, sort=False, dropna=False) if len(part) else ():
        named = dict(zip(by, key, strict=True))
        known = each[each["nll_sum"].notna()]
        first = known[known["series"] == baseline][["document_sha256", "nll_sum", "key_sha256"]]
        for series, other in known.groupby("series", sort=False) if named["key_judge"] != ITSELF else ():
            if series == baseline:
                continue
            both = other.merge(first, on="document_sha256", suffixes=("", "_first"))
            same = both[both["key_sha256"] == both["key_sha256_first"]]
            if len(same):
                found = over_clusters(
                    same["nll_sum"].astype(float) - same["nll_sum_first"].astype(float), same["tokens"]
                )
                found = of_enough(found, same["tokens"])
                lines.append(
                    named
                    | {"series": series, **dict(zip(("difference", "low", "high"), found, strict=True))}
                    | {"documents": len(same), "others": len(both) - len(same)}
                )
    return pd.DataFrame(lines, columns=columns)


def over_clusters(sums: "pd.Series[float]", sizes: "pd.Series[float]") -> tuple[float, float, float]:
    """Return the sum of sums over the sum of sizes, and its 95% interval with each pair as one cluster; pairs without a sum are left out.

    The ratio estimator linearised, with Student's t of clusters - 1 degrees of freedom (Cochran, Sampling Techniques, 6.3): the
    cluster-robust interval of a mean. Of equal sizes it is that of the clusters' means.
    """
    known = sums.notna().to_numpy()
    x, n = sums.to_numpy(dtype=float)[known], sizes.to_numpy(dtype=float)[known]
    if not n.sum():
        return math.nan, math.nan, math.nan
    ratio, count = float(x.sum() / n.sum()), len(x)
    if count < 2:
        return ratio, math.nan, math.nan
    error = math.sqrt(count / (count - 1) * float(np.square(x - ratio * n).sum())) / float(n.sum())
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return ratio, ratio - half, ratio + half


def of_enough(found: tuple[float, float, float], tokens: "pd.Series[int]") -> tuple[float, float, float]:
    """Return a mean and its interval; no interval where fewer than FEWEST documents have such tokens: the others tell nothing of it."""
    return found if (tokens > 0).sum() >= FEWEST else (found[0], math.nan, math.nan)


def _counts(sums: "pd.Series[float]") -> dict[str, int]:
    return {"documents": int(sums.notna().sum()), "failed": int(sums.isna().sum())}


def _of_measure(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the rows of a measure; no rows at all have no columns to go by."""
    return rows[rows["measure"] == measure] if len(rows) else rows.reindex(columns=["nll_sum", "nll_sum_near"])


def _over_documents(rows: pd.DataFrame, nats: pd.Series, by: list[str], name: str) -> pd.DataFrame:
    columns = [*by, name, "low", "high", "documents", "failed"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    whole = {name: "int64" for name in by if name in ("context_length", "window", "position_start", "position_end")}
    nats, rows = nats[rows["tokens"] > 0], rows[rows["tokens"] > 0]  # none in a bin of what a tokenizer puts in front
    rows = rows.astype(whole)  # beside rows of another probe, which lack them, they became floats
    # documents of a bin have equally many tokens, so the mean of their losses is all nats over all tokens
    values = rows.assign(value=nats.astype("float64") / rows["tokens"])
    grouped = values.groupby(by, sort=False)["value"]
    out = grouped.agg(["mean", "count", "size", "sem"]).reset_index()
    half = out["sem"] * stats.t.ppf((1 + CONFIDENCE) / 2, (out["count"] - 1).clip(lower=1))
    out = out.assign(low=out["mean"] - half, high=out["mean"] + half, failed=out["size"] - out["count"])
    return out.rename(columns={"mean": name, "count": "documents"})[columns]
