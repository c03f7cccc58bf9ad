"""Which setting to read a model with: candidates ranked on few prompts, some of them chosen, and their price."""

import math
from collections.abc import Collection, Mapping

import pandas as pd
from scipy import stats

from .clusters import CONFIDENCE
from .kinds import on_documents, on_prompts


@on_prompts
def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each length and series, the best of a length first: prompts, right, accuracy, tokens_right.

    accuracy: the share found, by which they are ranked. tokens_right: the mean share of an answer's tokens that rank first, which tells
    apart what finds as much. The probability of an answer does not: settings differ in how sure they are of what
    they find.
    """
    known = rows[rows["correct"].notna()]
    right = known["correct"].astype(float)
    known = known.assign(right=right, tokens_right=known["answer_ranks"].map(first_share).fillna(right))
    by_length = known.groupby(["context_length", "series"], sort=False)
    out = by_length.agg(prompts=("right", "size"), right=("right", "sum"), tokens_right=("tokens_right", "mean"))
    out.insert(2, "accuracy", out["right"] / out["prompts"])
    out = (
        out.astype({"right": int})
        .reset_index()
        .sort_values(["accuracy", "tokens_right"], ascending=False, kind="stable")
    )
    return out.sort_values("context_length", kind="stable", ignore_index=True)


def first_share(ranks: list[int] | None) -> float:
    """Return the share of an answer's tokens that rank first; NaN of one that was written, whose tokens have no ranks."""
    return ranks.count(0) / len(ranks) if isinstance(ranks, list) and ranks else math.nan


@on_prompts
def chosen(rows: pd.DataFrame, left: Mapping[int, Collection[str]]) -> dict[int, str]:
    """Return the series to take at each length, of those left there: few that find most.

    At the longest length it is the best ranked one. At each shorter one it is the one before, as long as that finds as many
    there as the best ranked one (finds_as_many), else this. A length at which none of them has a score is left out.
    """
    table, taken, before = ranked(rows), dict[int, str](), ""
    for length in sorted(left, reverse=True):
        here = table.loc[(table["context_length"] == length) & table["series"].isin([*left[length]]), "series"]
        if not here.empty:
            best = str(here.iloc[0])
            before = taken[length] = before if finds_as_many(rows, length, before, best) else best
    return dict(sorted(taken.items()))


def finds_as_many(rows: pd.DataFrame, context_length: int, series: str, other: str) -> bool:
    """Tell whether a series finds as many as another, or more, of the prompts of a length that both read; False where none are."""
    known = rows[(rows["context_length"] == context_length) & rows["correct"].notna()]
    known = known.drop_duplicates(["series", "prompt_sha256"])
    one, rest = (known[known["series"] == name].set_index("prompt_sha256")["correct"] for name in (series, other))
    both = one.index.intersection(rest.index)
    return bool(len(both)) and bool(one[both].sum() >= rest[both].sum())


@on_documents
def price(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return a line for each series but the baseline: what it costs on the same documents, nats a token, and documents.

    The mean over documents of the difference of their mean nll, with Student's t interval low, high (95%). No line where nothing
    of the baseline could be read.
    """
    part = rows[(rows["measure"] == "position") & rows["nll_sum"].notna()]
    sums = part.groupby(["series", "document"], sort=False)[["nll_sum", "tokens"]].sum()
    loss = (sums["nll_sum"].astype(float) / sums["tokens"]).unstack("document")
    lines = []
    for name in loss.index.drop(baseline) if baseline in loss.index else ():
        difference = (loss.loc[name] - loss.loc[baseline]).dropna()
        half = stats.t.ppf((1 + CONFIDENCE) / 2, max(1, len(difference) - 1)) * difference.sem()
        mean = float(difference.mean())
        lines.append(
            {"series": name, "nats": mean, "low": mean - half, "high": mean + half, "documents": len(difference)}
        )
    return pd.DataFrame(lines, columns=["series", "nats", "low", "high", "documents"])
