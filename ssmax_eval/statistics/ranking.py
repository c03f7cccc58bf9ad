"""Which setting to read a model with: candidates ranked on few prompts, some of them chosen, and their price."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from .clusters import CONFIDENCE
from .kinds import on_documents, on_prompts


@on_prompts
def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each length and series, the best of a length first: prompts, right, accuracy, probability, score.

    accuracy: the share found. probability: the mean of e^-nll, the probability of the whole answer, which tells more of few
    prompts. score: their mean, half of it at this length and half over all lengths, each alike, as what reads one length well
    likely reads others well. It is NaN of a series that lacks a length at which any has a score; that one comes last: what it
    would find there is not known.
    """
    known = rows[rows["correct"].notna()]
    right = known["correct"].astype(float)
    sure = np.exp(-known["answer_nll"].astype(float)).fillna(right)
    by_length = known.assign(accuracy=right, probability=sure).groupby(["context_length", "series"], sort=False)
    out = by_length[["accuracy", "probability"]].mean()
    here = out.mean(axis=1)
    over_all = here.unstack("context_length").mean(axis=1, skipna=False)
    out = out.assign(score=(here + over_all.reindex(here.index, level="series")) / 2).reset_index()
    counts = by_length["accuracy"].agg(["size", "sum"]).astype(int)
    out.insert(2, "prompts", counts["size"].to_numpy())
    out.insert(3, "right", counts["sum"].to_numpy())
    # two stable sorts, the second by length: of equals the first read stays first
    return out.sort_values("score", ascending=False, kind="stable").sort_values(
        "context_length", kind="stable", ignore_index=True
    )


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
