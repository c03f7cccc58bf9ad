"""Two series on identical prompts: is the difference real, and how large may it be."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from .clusters import (
    BY_TRIAL,
    CONFIDENCE,
    FEWEST,
    PLACE,
    clusters,
    effective_size,
    numbered,
    trial_names,
    with_plan,
)
from .exact import bootstrap, holm, mcnemar, paired_interval, sign_flip, smallest_difference
from .kinds import on_prompts, where
from .series import PROMPT, TASK, of_grid, tasks

COUNTS = ["both", "only", "only_baseline", "neither"]


class Beside(NamedTuple):
    """A series of a task beside the baseline, as `beside` gives them.

    pairs: of `paired`; shared: of identical prompts, else of trials. strangers: instead of pairs, where nothing pairs them, the
    prompts of the series and of the baseline.
    """

    task: tuple[Any, ...]
    series: str
    pairs: pd.DataFrame
    shared: bool
    strangers: tuple[pd.DataFrame, pd.DataFrame] | None = None


@on_prompts
def compare(
    rows: pd.DataFrame | list[Beside],
    baseline: str,
    by: tuple[str, ...] = ("context_length", "depth_percent"),
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every series with one of them on the prompts that both have, a line for each series and group of `by`.

    rows: with_series of needle rows, or what `beside` made of them for this baseline; controls, and prompts without a score in
    either, do not count. pairs, both, only, only_baseline, neither: prompts found by both, by one, by none. difference =
    accuracy - accuracy_baseline, low and high its 95% interval: Newcombe's paired score interval (1998, method 10). p: by
    `test`, McNemar's exact one; p_holm: over the lines of a series and task (Holm). smallest: the smallest difference that so
    many pairs can see beside so many lines, at best (smallest_difference). Where prompts share a haystack: with plan 1, the wider of
    that interval and of a bootstrap over haystacks, and the exact sign-flip test of their sums; with plan 2, the same interval
    of as many pairs as these are worth (clusters.effective_size), that test over trials, and -1 to 1 for fewer than FEWEST of
    either. trials: how many, those of overlapping text counted once; 0 with plan 1. Series with other prompts (another
    tokenizer, shared False): with plan 2 paired by trial; with plan 1 compared as independent, pairs 0, in cells that both
    have and with as many prompts each, by Newcombe's interval and Fisher's exact test.
    """
    lines = []
    for task, name, pairs, shared, strangers in rows if isinstance(rows, list) else beside(rows, baseline):
        found = of_strangers(strangers[0], strangers[1], by) if strangers else of_pairs(pairs, by, seed)
        adjusted = holm([line["p"] for line in found])
        head = dict(zip(TASK, task, strict=True)) | {"series": name, "baseline": baseline, "shared": shared}
        for line, p in zip(found, adjusted, strict=True):
            units = line.pop("independent")
            level, prompts = (1 - CONFIDENCE) / len(found), line["pairs"] / units if units else 1.0
            smallest = smallest_difference(units, level, prompts=prompts)
            lines.append({**head, **line, "p_holm": p, "smallest": smallest})
    columns = [
        *TASK,
        "series",
        "baseline",
        *by,
        "pairs",
        "trials",
        *COUNTS,
        "accuracy",
        "accuracy_baseline",
        "difference",
    ]
    return pd.DataFrame(lines, columns=[*columns, "low", "high", "p", "p_holm", "smallest", "shared", "test"])


@on_prompts
def beside(rows: pd.DataFrame, baseline: str) -> list[Beside]:
    """Pair every series with the baseline, of each task that has it: once for all that is then told of them."""
    out = []
    grid = of_grid(rows, [*PROMPT, *PLACE, "correct"])
    for task, part in tasks(with_plan(where(grid, grid["correct"].notna()))):
        by_trial = part["plan"].iloc[0] == BY_TRIAL
        if by_trial:  # hashes only have to be told apart, which numbers are sooner
            part = part.assign(prompt_sha256=numbered(part["prompt_sha256"]))
        known = part[part["series"] == baseline]
        for name in part["series"].unique():
            if name == baseline or known.empty:
                continue
            own = part[part["series"] == name]
            pairs = paired(own, known)
            if not pairs.empty:
                out.append(Beside(task, name, pairs, shared=True))
            elif by_trial:
                partners = with_partner(own, known), with_partner(known, own)
                out.append(Beside(task, name, paired(*partners, ("partner",)), shared=False))
            else:
                out.append(Beside(task, name, pairs, shared=False, strangers=(own, known)))
    return out


def paired(own: pd.DataFrame, other: pd.DataFrame, by: tuple[str, ...] = ("prompt_sha256",)) -> pd.DataFrame:
    """Return the prompts that two series share: context_length, depth_percent, and right, right_baseline (0 or 1).

    by: the columns that tell that two are the same one. cluster tells what a prompt depends on among those of its length,
    region among all (clusters.clusters).
    """
    key = ["context_length", "depth_percent", *by]
    kept = [name for name in ("plan", "seed", "trial", "prompt_sha256") if name in own and name not in key]
    places = [name for name in ("haystack_start", "haystack_sentences") if name in own and name in other]
    left = own.assign(right=own["correct"].astype(float))[[*key, *kept, *places, "right"]]
    right = other.assign(right_baseline=other["correct"].astype(float))[[*key, *places, "right_baseline"]]
    pairs = left.merge(right, on=key, suffixes=("", "_other"))
    for name in places:  # rows of an older run lack them
        pairs[name] = pairs[name].fillna(pairs.pop(f"{name}_other"))
    return pairs.assign(cluster=clusters(pairs), region=clusters(pairs, by_length=False))


def with_partner(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return a series' rows with column `partner`, alike for trials to be paired with those of one that has other prompts.

    A trial's text and values are drawn from its seed and number, whatever the tokenizer makes of them.
    """
    name = trial_names(rows)
    if set(name.unique()).isdisjoint(trial_names(other).unique()):
        # trials of different seeds have nothing in common: any one may stand beside any other
        return rows.assign(partner=pd.factorize(name, sort=True)[0].astype(str))
    return rows.assign(partner=name)


def of_pairs(pairs: pd.DataFrame, by: tuple[str, ...], seed: int) -> list[dict[str, Any]]:
    if pairs.empty:
        return []
    out = []
    cluster = "cluster" if "context_length" in by else "region"
    by_trial = bool((pairs["plan"] == BY_TRIAL).any())
    shown = pairs[[*by, "right", "right_baseline"]].assign(unit=pd.factorize(pairs[cluster], sort=True)[0])
    for key, part in shown.groupby(list(by)) if by else [((), shown)]:
        own, other, unit = (part[name].to_numpy() for name in ("right", "right_baseline", "unit"))
        both, only, only_other = ((own * other).sum(), (own * (1 - other)).sum(), ((1 - own) * other).sum())
        counts = [int(both), int(only), int(only_other), int(len(part) - both - only - only_other)]
        low, high = paired_interval(*counts)
        units, unit = np.unique(unit, return_inverse=True)
        line: dict[str, Any] = {
            "p": mcnemar(counts[1], counts[2]),
            "test": "McNemar's exact test",
            "independent": len(part),
            "trials": len(units) if by_trial else 0,
        }
        if len(units) < len(part):
            sums = np.bincount(unit, weights=own - other).astype(float)
            if by_trial:
                worth = effective_size(own - other, unit) / len(part)
                low, high = paired_interval(*(count * worth for count in counts))
            else:
                wider = bootstrap(sums, np.bincount(unit).astype(float), seed)
                low, high = min(low, wider[0]), max(high, wider[1])
            if len(sums) < FEWEST:  # too few trials or stretches of text to say anything of the next
                low, high = -1.0, 1.0
            line |= {"p": sign_flip(sums), "independent": len(sums)}
            line |= {"test": f"exact sign-flip test over {'trials' if by_trial else 'haystacks'}"}
        line |= {"pairs": len(part), **dict(zip(COUNTS, counts, strict=True)), "accuracy": own.mean()}
        line |= {"accuracy_baseline": other.mean(), "difference": (own - other).mean(), "low": low, "high": high}
        out.append(dict(zip(by, key, strict=True)) | line)
    return out


def of_strangers(own: pd.DataFrame, other: pd.DataFrame, by: tuple[str, ...]) -> list[dict[str, Any]]:
    from statsmodels.stats.proportion import confint_proportions_2indep

    cell = ["context_length", "depth_percent"]
    sizes = [rows.groupby(cell).size().rename(name) for name, rows in (("own", own), ("other", other))]
    common = pd.concat(sizes, axis=1, join="inner").min(axis=1).rename("kept").reset_index()
    # as many prompts of every cell on both sides, or a side's easy cells would weigh more
    balanced = [rows.merge(common, on=cell) for rows in (own, other)]
    balanced = [rows[rows.groupby(cell).cumcount() < rows["kept"]] for rows in balanced]
    if common.empty:
        return []
    groups = [
        {key: part["correct"].astype(float) for key, part in (rows.groupby(list(by)) if by else [((), rows)])}
        for rows in balanced
    ]
    out = []
    for key in groups[0]:
        (k, n), (k0, n0) = ((int(side[key].sum()), len(side[key])) for side in groups)
        low, high = confint_proportions_2indep(k, n, k0, n0, method="newcomb", compare="diff", alpha=1 - CONFIDENCE)
        p = float(stats.fisher_exact([[k, n - k], [k0, n0 - k0]]).pvalue)
        line: dict[str, Any] = {
            "pairs": 0,
            "accuracy": k / n,
            "accuracy_baseline": k0 / n0,
            "difference": k / n - k0 / n0,
        }
        line |= {
            "low": float(low),
            "high": float(high),
            "p": p,
            "test": "Fisher's exact test",
            "independent": 0,
            "trials": 0,
        }
        out.append(dict(zip(by, key, strict=True)) | line)
    return out
