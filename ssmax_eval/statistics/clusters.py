"""What belongs together: prompts that share a stretch of text, or with plan 2 the trial's haystack, are not independent."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ..errors import UserError

CONFIDENCE = 0.95
FEWEST = 5  # trials or stretches of text below which an interval would be guessed
PLANS = (1, 2)  # of prompts: a haystack for each prompt; a haystack for each trial, shared by its depths and lengths
BY_TRIAL = 2
Floats = NDArray[np.float64]


def with_plan(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with their plan as a whole number; rows that do not tell one are of plan 1.

    Raises UserError for a plan that is not in PLANS: how its prompts depend on each other is not known here.
    """
    told = rows["plan"] if "plan" in rows else pd.Series(None, index=rows.index, dtype=object)
    plan = told.where(told.notna(), 1)
    if unknown := [value for value in plan.unique().tolist() if value not in PLANS]:
        raise UserError(
            f"plan {unknown[0]!r} in the rows: allowed are 1 and 2; read rows of a newer ssmax-eval with that version"
        )
    return rows.assign(plan=plan.astype("int64"))


def clusters(rows: pd.DataFrame, by_length: bool = True) -> "pd.Series[str]":
    """Name what each prompt of one task and series depends on: its trial, or the stretch of text its haystack begins in.

    Plan 2: the trial (`trials`). Plan 1: a stretch of real text as long as the longest haystack of the prompt's length
    (by_length) or of all; where text is made for each prompt, the prompt itself.
    """
    if "plan" in rows and (rows["plan"] == BY_TRIAL).any():
        if not by_length:
            return trials(rows)
        return pd.concat([trials(part) for _, part in rows.groupby("context_length")]).loc[rows.index]
    if "haystack_start" not in rows or "haystack_sentences" not in rows:
        return rows["prompt_sha256"]
    used = rows["haystack_sentences"].astype(float)
    width = used.groupby(rows["context_length"]).transform("max") if by_length else used.max()
    block = (rows["haystack_start"].astype(float) // width).astype(str)
    if by_length:
        block = rows["context_length"].astype(str) + "/" + block
    return block.where(rows["haystack_start"].notna(), rows["prompt_sha256"])


def trials(rows: pd.DataFrame) -> "pd.Series[str]":
    """Name the trial of each prompt by seed and number, alike for trials whose stretches of real text overlap, in a chain too.

    A stretch is taken as the sentences that follow haystack_start; where a text starts over at its end is not known.
    """
    name = trial_names(rows)
    if "haystack_start" not in rows or "haystack_sentences" not in rows:
        return name
    start = rows["haystack_start"].astype(float)
    end = start + rows["haystack_sentences"].astype(float).clip(lower=1)
    spans = pd.DataFrame({"start": start, "end": end}).groupby(name).agg({"start": "min", "end": "max"})
    spans = spans.dropna().sort_values("start")
    apart = spans["start"] >= spans["end"].cummax().shift(fill_value=-np.inf)
    chain = apart.cumsum().astype(str)
    joined = ("text " + chain).to_dict()  # a trial whose text is made for it joins no other
    return name.map(lambda each: joined.get(each, each))


def trial_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return `seed/trial` of each row."""
    seed = rows["seed"].astype(str) if "seed" in rows else ""
    return seed + "/" + rows["trial"].astype(str)


def effective_size(values: Floats, cluster: "pd.Series[str]") -> float:
    """Return how many independent prompts tell as much of the mean of `values` as these, some of which share a cluster.

    Their number over the design effect: the variance of the mean with clusters as the unit over that of as many independent
    prompts (Kish 1965); times (z / t)^2 of clusters - 1 degrees of freedom, as the former is estimated from few (Korn and
    Graubard 1998, Survey Methodology 24, 193). At most the prompts there are, at least what they are worth if all of a
    cluster have one value, so as many as clusters of equal size. Clusters that agree to the last prompt do not show how far
    clusters lie apart: they count as the least.
    """
    unit = pd.factorize(cluster)[0]
    sizes, sums = np.bincount(unit), np.bincount(unit, weights=values - values.mean())
    prompts, units = len(values), len(sizes)
    least = prompts**2 / float((sizes**2).sum())
    if units < 2 or np.ptp(values) == 0:
        return least
    together = units / (units - 1) * float((sums**2).sum()) / prompts**2
    alone = float(values.var()) / prompts
    size = min(max(prompts * alone / together, least), prompts) if together > 0 else float(prompts)
    few = stats.norm.ppf((1 + CONFIDENCE) / 2) / stats.t.ppf((1 + CONFIDENCE) / 2, units - 1)
    return max(size * float(few) ** 2, least)
