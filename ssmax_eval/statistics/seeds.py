"""Training seeds as the second level: what holds over models of one configuration, beyond the prompts of any one."""

import numpy as np
import pandas as pd
from scipy import stats

from .clusters import CONFIDENCE, PLACE, with_plan
from .grids import lengths
from .kinds import on_prompts, where
from .paired import paired
from .series import PROMPT, TASK, of_grid

Configurations = dict[str, tuple[str, int]]  # series: its configuration's name and its seed


@on_prompts
def over_seeds(rows: pd.DataFrame, configurations: Configurations) -> pd.DataFrame:
    """Return a line for each configuration and length: accuracy, the mean over its seeds, and its 95% interval low, high.

    The interval is Student's t over the seeds' accuracies, cut at 0 and 1: a seed is what is drawn anew, and its prompts' luck
    is in its accuracy; NaN with one seed or equal ones. A seed that is there twice counts once. seeds, least, most: how
    many, and the accuracies of the worst and the best.
    """
    configurations = once(configurations)
    found = lengths(rows[rows["series"].isin(list(configurations))])
    found["configuration"] = found["series"].map(lambda name: configurations[name][0])
    by = [*TASK, "configuration", "context_length"]
    return with_t(found.dropna(subset=["accuracy"]), "accuracy", by, 0.0)


@on_prompts
def compare_seeds(
    rows: pd.DataFrame, configurations: Configurations, baseline: str, by: tuple[str, ...] = ("context_length",)
) -> pd.DataFrame:
    """Return a line for each configuration but the baseline and each length: the mean over seeds of the paired difference.

    by: what tells lines apart; () pools all lengths. Models of the same seed are paired, on the prompts they share. accuracy,
    accuracy_baseline: the means over those seeds, on those prompts. difference
    with its 95% interval low, high as in over_seeds; p: Student's t test over the seeds' differences; NaN with one seed, or
    where the seeds' differences are equal.
    """
    configurations = once(configurations)
    known = {seed: name for name, (configuration, seed) in configurations.items() if configuration == baseline}
    grid = of_grid(rows, [*PROMPT, *PLACE, "correct"])
    grid = with_plan(where(grid, grid["correct"].notna()))
    lines = []
    for task, part in grid.groupby(TASK, sort=False):
        series = dict.fromkeys(part["series"])
        for name in series:
            if name not in configurations:
                continue
            configuration, seed = configurations[name]
            if configuration == baseline or known.get(seed) not in series:
                continue
            pairs = paired(part[part["series"] == name], part[part["series"] == known[seed]])
            for at, same in pairs.groupby([*by]) if by else [((), pairs)]:
                head = (
                    dict(zip(TASK, task, strict=True))
                    | {"configuration": configuration}
                    | dict(zip(by, at, strict=True))
                )
                own, other = float(same["right"].mean()), float(same["right_baseline"].mean())
                lines.append(head | {"difference": own - other, "accuracy": own, "accuracy_baseline": other})
    key, beside = [*TASK, "configuration", *by], ["accuracy", "accuracy_baseline"]
    found = pd.DataFrame(lines, columns=[*key, "difference", *beside])
    of_both = found.groupby(key, sort=False)[beside].mean().reset_index()
    return with_t(found, "difference", key, -1.0).merge(of_both, on=key, how="left")


def once(configurations: Configurations) -> Configurations:
    """Return the first series of each configuration and seed: the same training twice is one draw of a seed, not two."""
    first: dict[tuple[str, int], str] = {}
    for name, key in configurations.items():
        first.setdefault(key, name)
    return {name: key for key, name in first.items()}


def with_t(values: pd.DataFrame, name: str, by: list[str], least: float) -> pd.DataFrame:
    columns = [*by, name, "low", "high", *(["p"] if name != "accuracy" else []), "seeds", "least", "most"]
    if values.empty:
        return pd.DataFrame(columns=columns)
    grouped = values.groupby(by, sort=False)[name]
    out = grouped.agg(["mean", "size", "sem", "min", "max"]).reset_index()
    freedom = (out["size"] - 1).clip(lower=1)
    # seeds that agree to the last prompt are no proof that all would
    half = out["sem"].where(out["sem"] > 0) * stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    out = out.assign(low=(out["mean"] - half).clip(lower=least), high=(out["mean"] + half).clip(upper=1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (out["mean"] / out["sem"]).abs()
    out["p"] = np.where((out["size"] > 1) & (out["sem"] > 0), 2 * stats.t.sf(t, freedom), np.nan)
    names = {"mean": name, "size": "seeds", "min": "least", "max": "most"}
    return out.rename(columns=names)[columns]
