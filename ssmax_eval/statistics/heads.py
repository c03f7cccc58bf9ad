"""Attention of heads: by prompt, by length, and whether it fades."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .clusters import BY_TRIAL, CONFIDENCE, FEWEST, PLACE, numbered, trials, with_plan
from .kinds import on_prompts, where
from .series import TASK, told

HEAD = (
    "mass_answer", "mass_needle", "log_odds", "mass_answer_mean", "mass_next",
    "mass_first", "mass_question", "entropy", "maximum", "maximum_at", "row_sum",
)  # fmt: skip


@on_prompts
def heads(rows: pd.DataFrame, measures: Sequence[str] = HEAD) -> pd.DataFrame:
    """Return attention rows as one line per prompt, layer and head, from needle rows with attention masses (probes/attention).

    cluster: what is independent, the prompt, with plan 2 its trial. layer is its index in the model, head counts from 0; n is the
    number of keys that the layer sees in the row which predicts the answer's first token. measures: those of HEAD to return.
    Prompts without a needle or without a score are left out.
    """
    kept = [*TASK, "series", "context_length", "depth_percent", "trial", "cluster", "prompt_sha256"]
    kept += ["correct", "first_correct"]
    columns = [*kept, "layer", "head", "n", *measures]
    if "mass_answer" not in rows:
        return pd.DataFrame(columns=columns)
    has_masses = rows["mass_answer"].map(lambda mass: isinstance(mass, list))
    part = where(rows, has_masses & rows["control"].isna() & rows["error"].isna())
    if part.empty:
        return pd.DataFrame(columns=columns)
    part = with_plan(
        told(part, [*kept, *PLACE, "mass_answer", *measures, "layers", "visible_keys"]).reset_index(drop=True)
    )
    own = numbered(*(part[name] for name in (*TASK, "series")))
    by_trial = part["plan"] == BY_TRIAL
    # numbers of prompts, and above them those of trials
    part["cluster"] = numbered(part["prompt_sha256"]).where(~by_trial, len(part) + trials(part, own))
    widths = [[len(layer) for layer in mass] for mass in part["mass_answer"]]  # heads, which may differ by layer
    sizes = np.array([sum(width) for width in widths])
    numbers = {
        name: flat(part[name], sizes) if name in part else np.full(int(sizes.sum()), np.nan) for name in measures
    }
    # rows of before say nothing of layers: there every layer attended
    named = part["layers"] if "layers" in part else [None] * len(part)
    layers = [each if isinstance(each, list) else range(len(width)) for each, width in zip(named, widths, strict=True)]
    layer, counts, n = (np.array([*chain.from_iterable(each)]) for each in (layers, widths, part["visible_keys"]))
    out = part[kept].iloc[np.repeat(np.arange(len(part)), sizes)].reset_index(drop=True)
    return out.assign(
        layer=np.repeat(layer, counts),
        head=np.arange(len(out)) - np.repeat(np.cumsum(counts) - counts, counts),
        n=np.repeat(n, counts),
        **numbers,
    )[columns]


def flat(masses: "pd.Series[Any]", sizes: NDArray[Any]) -> NDArray[Any]:
    """Return a measure of prompts, each a list of layers of heads, in a row; NaN for a prompt that has none."""
    lists = [mass if isinstance(mass, list) else [[math.nan] * size] for mass, size in zip(masses, sizes, strict=True)]
    return np.array([*chain.from_iterable(chain.from_iterable(lists))], dtype=float)


def head_scores(by_head: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series, length, layer and head: mean mass on the answer and on the needle, and prompts."""
    by = [*TASK, "series", "context_length", "layer", "head"]
    grouped = by_head.groupby(by, sort=False)
    return grouped.agg(
        mass_answer=("mass_answer", "mean"), mass_needle=("mass_needle", "mean"), prompts=("n", "size")
    ).reset_index()


def top_heads(by_head: pd.DataFrame) -> pd.DataFrame:
    """Return the head with the most mass on the answer for each prompt (the paper's Figure 8), and the verdict: right, first, wrong."""
    prompt = [*TASK, "series", "context_length", "depth_percent", "trial", "prompt_sha256"]
    seen = by_head[by_head["mass_answer"].notna()]  # a layer's window may hold nothing of the needle
    best = seen.loc[seen.groupby(prompt, sort=False)["mass_answer"].idxmax()].reset_index(drop=True)
    right, first = (best[name].astype("boolean").fillna(False).astype(bool) for name in ("correct", "first_correct"))
    return best.assign(verdict=np.select([right, first], ["right", "first token"], "wrong"))


def fading(by_head: pd.DataFrame) -> pd.DataFrame:
    """Return the fit ln(mass / (1 - mass)) = a + b ln n of each head over its prompts, by least squares.

    One line per series, layer and head: a, b, and b's 95% interval low, high (errors that may differ with n, HC3; with plan 2
    errors that a trial's prompts share, clustered by trial, Student's t of trials - 1). b is NaN where n does not vary or some
    prompt's needle is out of a layer's window, the interval where a length has one prompt or there are fewer than FEWEST trials.
    A softmax head whose scores do not depend on n has b = -1, a SSMax head s * lead - 1.
    """
    import statsmodels.api as sm  # seconds to import

    lines = []
    by = [*TASK, "series", "layer", "head"]
    for key, part in by_head.groupby(by, sort=False):
        line = dict(zip(by, key, strict=True)) | dict.fromkeys(("a", "b", "low", "high"), float("nan"))
        n, odds = part["n"].to_numpy(dtype=float), part["log_odds"].to_numpy(dtype=float)
        if len(np.unique(n)) > 1 and np.isfinite(odds).all():
            fit = sm.OLS(odds, sm.add_constant(np.log(n))).fit()
            line |= {"a": fit.params[0], "b": fit.params[1]}
            # a length with one prompt fits it exactly, and says nothing of its scatter
            if part["context_length"].value_counts().min() > 1:
                if line["plan"] != BY_TRIAL:
                    robust = fit.get_robustcov_results("HC3", use_t=True)
                elif part["cluster"].nunique() >= FEWEST:
                    groups = pd.factorize(part["cluster"])[0]
                    robust = fit.get_robustcov_results("cluster", groups=groups, use_t=True)
                else:
                    robust = None
                if robust is not None:
                    line["low"], line["high"] = robust.conf_int(1 - CONFIDENCE)[1]
        lines.append(line | {"prompts": len(part)})
    return pd.DataFrame(lines, columns=[*by, "a", "b", "low", "high", "prompts"])
