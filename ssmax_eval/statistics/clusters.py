"""What belongs together: prompts that share a stretch of text, or with plan 2 the trial's haystack, are not independent."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ..errors import UserError

CONFIDENCE = 0.95
FEWEST = 5  # trials or stretches of text below which an interval would be guessed
PLANS = (1, 2)  # of prompts: a haystack for each prompt; a haystack for each trial, shared by its depths and lengths
BY_TRIAL = 2
# what tells the trial and the text of a prompt
PLACE = ["plan", "seed", "trial", "haystack_start", "haystack_sentences"]
BLOCK = 2**22  # numbers drawn at once
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


def clusters(rows: pd.DataFrame, by_length: bool = True) -> "pd.Series[Any]":
    """Tell by name or number what each prompt of one task and series depends on: its trial, or the stretch of text its haystack begins in.

    Plan 2: the trial (`trials`). Plan 1: a stretch of real text as long as the longest haystack of the prompt's length
    (by_length) or of all; where text is made for each prompt, the prompt itself.
    """
    if "plan" in rows and (rows["plan"] == BY_TRIAL).any():
        return trials(rows, rows["context_length"] if by_length else None)
    if "haystack_start" not in rows or "haystack_sentences" not in rows or rows["haystack_start"].isna().all():
        return rows["prompt_sha256"]
    used = rows["haystack_sentences"].astype(float)
    width = used.groupby(rows["context_length"]).transform("max") if by_length else used.max()
    block = (rows["haystack_start"].astype(float) // width).astype(str)
    if by_length:
        block = rows["context_length"].astype(str) + "/" + block
    return block.where(rows["haystack_start"].notna(), rows["prompt_sha256"])


def trials(rows: pd.DataFrame, within: "pd.Series[Any] | None" = None) -> "pd.Series[int]":
    """Number the trial of each prompt by seed and number, alike for trials whose stretches of real text overlap, in a chain too.

    A stretch is taken as the sentences that follow haystack_start; where a text starts over at its end is not known.
    within: groups of prompts (their lengths, their cells), each looked at by itself; no two of them share a number.
    """
    name = trial_numbers(rows, within)
    if "haystack_start" not in rows or "haystack_sentences" not in rows:
        return name
    start = rows["haystack_start"].astype(float)
    if start.isna().all():  # text that is made for its trial joins no other
        return name
    end = start + rows["haystack_sentences"].astype(float).clip(lower=1)
    group = pd.Series(0, index=rows.index) if within is None else numbered(within)
    spans = pd.DataFrame({"group": group, "start": start, "end": end}).groupby(name)
    spans = spans.agg({"group": "first", "start": "min", "end": "max"}).dropna().sort_values(["group", "start"])
    before = spans.groupby("group")["end"].cummax().groupby(spans["group"]).shift(fill_value=-np.inf)
    joined = np.arange(int(name.max()) + 1)
    joined[spans.index] = len(joined) + (spans["start"] >= before).cumsum()
    return pd.Series(joined[name], index=rows.index)


def trial_numbers(rows: pd.DataFrame, within: "pd.Series[Any] | None" = None) -> "pd.Series[int]":
    """Number the trial of each prompt by seed and number alone, within groups."""
    keys = [rows[name] for name in ("seed", "trial") if name in rows]
    return numbered(*keys, *([] if within is None else [within]))


def numbered(*keys: "pd.Series[Any]") -> "pd.Series[int]":
    """Number rows from 0, alike where all keys are; of keys of equal index, a missing value is a value."""
    number = np.zeros(len(keys[0]), dtype=np.int64)
    for key in keys:
        codes, values = pd.factorize(key, use_na_sentinel=False)
        if len(values) > 1:
            number = pd.factorize(number * len(values) + codes)[0]
    return pd.Series(number, index=keys[0].index)


def blocks(count: int, width: int) -> Iterator[int]:
    """Cut `count` lines of so many numbers each into blocks that fit into memory, and yield how many lines each has."""
    size = max(1, BLOCK // max(1, width))
    yield from [size] * (count // size)
    if count % size:
        yield count % size


def trial_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return `seed/trial` of each row."""
    number = trial_numbers(rows)
    each = rows.iloc[np.unique(number, return_index=True)[1]]  # a row of each trial
    seed = each["seed"].astype(str) if "seed" in rows else ""
    return pd.Series((seed + "/" + each["trial"].astype(str)).array.take(number), index=rows.index)


def effective_size(values: Floats, cluster: "pd.Series[Any] | NDArray[Any]") -> float:
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
    return max(size * few(units) ** 2, least)


@cache
def few(units: int) -> float:
    """Return by how much an interval over so many units is narrower with the normal distribution than with Student's t."""
    return float(stats.norm.ppf((1 + CONFIDENCE) / 2) / stats.t.ppf((1 + CONFIDENCE) / 2, units - 1))
