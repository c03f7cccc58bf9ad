"""RULER's scores: the mean credit of a task, the mean over tasks by length, and how far it holds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from ..errors import UserError
from .clusters import BY_TRIAL, FEWEST, Floats, effective_size, trials
from .grids import wilson
from .reach import SHARE, bounds, drawn_trials, reached, tokens

THRESHOLD = 0.856  # RULER's: what Llama-2-7B scores at 4,096 tokens, over its 13 tasks (arXiv 2404.06654, section 4)
BY = ["haystack", "series"]  # of two haystacks nothing is pooled
TOLD = [
    *BY,
    "task",
    "context_length",
    "prompt_sha256",
    "seed",
    "trial",
    "haystack_start",
    "haystack_sentences",
    "credit",
]


def ruler_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each series, task and length: prompts, those scored and failed, and the score, their mean credit, 0 to 1.

    rows: of the probe `ruler`, as load_results returns them. low, high: its 95% interval, Wilson's of as many prompts; where some
    are right in part it is wider than need be. NaN without a score.
    """
    by = [*BY, "task", "context_length"]
    grouped = once_each(rows).groupby(by, sort=False)["credit"]
    out = grouped.agg(prompts="size", scored="count", score="mean").reset_index()
    out["failed"] = out["prompts"] - out["scored"]
    out["low"], out["high"] = wilson(np.nan_to_num(out["score"] * out["scored"]), out["scored"])
    return out[[*by, "prompts", "scored", "failed", "score", "low", "high"]]


def ruler_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each series and length: the mean over tasks, each with the same weight, as RULER's average.

    Of the tasks that all series have a score of at all their lengths: means of unlike tasks do not stand beside each other.
    tasks: how many. low, high: its 95% interval, Wilson's of as many prompts as these are worth with trials as the
    unit (clusters.effective_size), as prompts of a trial share their prose. Fewer than FEWEST trials give none: 0 to 1.
    """
    lines = []
    for (haystack, name, length), part in of_common_tasks(once_each(rows)).groupby([*BY, "context_length"], sort=False):
        known = part[part["credit"].notna()]
        if known.empty:
            continue
        unit = trials(known).to_numpy()
        score = float(known.groupby("task")["credit"].mean().mean())
        size = effective_size(known["credit"].to_numpy(dtype=float), unit)
        low, high = wilson(np.array([score * size]), np.array([size]))
        few = len(np.unique(unit)) < FEWEST
        lines.append(
            {"haystack": haystack, "series": name, "context_length": int(length)}
            | {"tasks": known["task"].nunique(), "trials": len(np.unique(unit))}
            | {"scored": len(known), "failed": len(part) - len(known), "score": score}
            | {"low": 0.0 if few else float(low[0]), "high": 1.0 if few else float(high[0])}
        )
    names = "context_length tasks trials scored failed score low high".split()
    return pd.DataFrame(lines, columns=[*BY, *names]).sort_values("context_length", kind="stable", ignore_index=True)


def ruler_lengths(rows: pd.DataFrame, share: float = SHARE, threshold: float = THRESHOLD) -> pd.DataFrame:
    """Return two lines for each series: how far the mean over tasks holds against RULER's threshold, and its own short score.

    against: `threshold` (at least that, as RULER tells it) or `own` (at least `share` of that at the shortest length, as
    effective_lengths). Of the tasks of ruler_means. effective_length in tokens, NaN where even the shortest length does not
    hold; low and high bound its 95% interval by the bootstrap of effective_lengths over trials; NaN to the longest of fewer than
    FEWEST. beyond, low_beyond, high_beyond: the longest length still holds.
    """
    lines = []
    every = of_common_tasks(once_each(rows))
    for (haystack, name), own in every[every["credit"].notna()].groupby(BY, sort=False):
        part = own.assign(right=own["credit"].astype(float), plan=BY_TRIAL)
        part = part.assign(region=trials(part))
        lengths = np.array(sorted(part["context_length"].unique()))
        by_length = [part[part["context_length"] == length] for length in lengths]
        means = np.array([each.groupby("task")["right"].mean().mean() for each in by_length])
        draws, last = drawn_trials(by_length, 0)[..., 0], len(lengths) - 1
        enough = part["region"].nunique() >= FEWEST
        rules: dict[str, Callable[[Floats], Any]] = {
            "threshold": lambda scores: passing(scores, threshold),
            "own": lambda scores: reached(scores, share),
        }
        for against, rule in rules.items():
            at = int(rule(means[None])[0])
            none = against == "own" and at < 0  # of nothing, no share is left to keep
            low, high = (-1, -1) if none else bounds(rule(draws)) if enough else (-1, last)
            lines.append(
                {"haystack": haystack, "series": name, "against": against}
                | {"least": threshold if against == "threshold" else share * means[0]}
                | {"shortest": int(lengths[0]), "score": float(means[0]), "tasks": part["task"].nunique()}
                | {"trials": part["region"].nunique(), "lengths": len(lengths)}
                | {"effective_length": tokens(lengths, at), "beyond": at == last}
                | {"low": tokens(lengths, low), "low_beyond": low == last}
                | {"high": tokens(lengths, high), "high_beyond": high == last}
            )
    names = "against least shortest score tasks trials lengths effective_length beyond low low_beyond high high_beyond"
    return pd.DataFrame(lines, columns=[*BY, *names.split()])


def of_common_tasks(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of those tasks that have a score at every length of every series, of each haystack."""
    known = rows[rows["credit"].notna()]
    cells = known[[*BY, "context_length"]].drop_duplicates()["haystack"].value_counts()
    has = known[["task", *BY, "context_length"]].drop_duplicates().groupby(["haystack", "task"]).size()
    common = [(haystack, task) for (haystack, task), count in has.items() if count == cells[haystack]]
    return rows[[pair in common for pair in zip(rows["haystack"], rows["task"], strict=True)]]


def passing(scores: Floats, threshold: float) -> Any:
    """Return the index of the longest length with at least a score, for each line of scores (lines, lengths); -1 for none."""
    holds = scores >= threshold - 1e-9
    return np.where(holds.any(1), holds.shape[1] - 1 - holds[:, ::-1].argmax(1), -1)


def once_each(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what is told of each prompt of each series, once, however many runs have it. Raises UserError for other rows."""
    if missing := next((name for name in ("series", "credit", "prompt_tokens", "task") if name not in rows), None):
        raise UserError(
            f"statistics.ruler: the rows have no column {missing!r}; give rows of the probe ruler (load_results)"
        )
    rows = rows.reset_index(drop=True)
    of_ruler = rows["prompt_tokens"].notna() if "probe" not in rows else rows["probe"] == "ruler"
    kept = rows.loc[of_ruler, TOLD]
    kept = kept.loc[kept["credit"].notna().sort_values(kind="stable").index]  # a score before none
    kept = kept[~kept.duplicated([*BY, "task", "prompt_sha256"], keep="last")].sort_index()
    return kept.assign(credit=kept["credit"].astype("float64"))
