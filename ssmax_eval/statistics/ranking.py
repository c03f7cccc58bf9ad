"""Which setting to read a model with: candidates ranked on few prompts, one of them chosen, and its price."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from .clusters import CONFIDENCE
from .kinds import on_documents, on_prompts


@on_prompts
def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each series, the best first: prompts, accuracy, probability, lost.

    accuracy: mean over the lengths at which any has a score, each alike; NaN of a series that lacks one of them, which comes last:
    what it would find there is not known. probability: likewise of e^-nll, the probability of the whole answer, which tells more
    of few prompts. lost: the most that it finds less than the best of them at any one length. The order is by the mean of
    accuracy and probability.
    """
    known = rows[rows["correct"].notna()]
    right = known["correct"].astype(float)
    sure = np.exp(-known["answer_nll"].astype(float)).fillna(right)
    by_length = known.assign(right=right, sure=sure).groupby(["series", "context_length"], sort=False)
    means = by_length[["right", "sure"]].mean().unstack("context_length")
    means = means.reindex(known["series"].unique())  # unstacked, they are in the order of their names
    right = means["right"]
    every = {"accuracy": right.mean(axis=1, skipna=False), "probability": means["sure"].mean(axis=1, skipna=False)}
    out = pd.DataFrame(every | {"lost": (right.max() - right).max(axis=1, skipna=False)})
    out = out.rename_axis("series").reset_index()
    out.insert(1, "prompts", out["series"].map(known["series"].value_counts()).astype(int))
    order = (out["accuracy"] + out["probability"]).sort_values(ascending=False, kind="stable").index
    return out.loc[order].reset_index(drop=True)


def chosen(table: pd.DataFrame) -> str:
    """Return the series to take of a ranked table that also has nats, what each costs a token at short length.

    It is the one that loses least to the others at any one length. Of those that lose alike: the cheapest, then the best ranked.
    """
    by_loss = table.assign(lost=table["lost"].round(9), nats=table["nats"].fillna(math.inf))
    return str(by_loss.sort_values(["lost", "nats"], kind="stable")["series"].iloc[0])


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
