"""RoPE theta as an axis: what each factor finds, and the grid in which every cell has its best one."""

import numpy as np
import pandas as pd

from .clusters import with_plan
from .grids import COUNTED, cells, lengths
from .kinds import on_prompts
from .series import TASK, told

BEST = "best theta of each cell"


@on_prompts
def theta_lengths(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of `lengths` for each subject, rope_theta_factor and context length, of subjects with several factors."""
    part = on_the_axis(told(rows, (*COUNTED, "subject", "rope", "rope_theta_factor")))
    if part.empty:
        return pd.DataFrame(columns=["subject", "rope_theta_factor", *lengths(part).columns])
    named = part[["series", "subject", "rope_theta_factor"]].drop_duplicates()
    return lengths(part).merge(named, on="series")


@on_prompts
def best_theta(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, for subjects with several theta factors, each cell's rows at the factor that finds most there, as series of their own.

    The factor nearest 1 where several find as much. It is chosen on the very prompts it is judged by, which flatters it: an
    upper bound of what a choice of theta can do for this subject, meant for the baseline of a comparison.
    """
    part = on_the_axis(rows)
    if part.empty:
        return part
    cell = [*TASK, "subject", "context_length", "depth_percent"]
    found = cells(part).merge(part[["series", "subject", "rope_theta_factor"]].drop_duplicates(), on="series")
    found["off"] = np.abs(np.log(found["rope_theta_factor"].astype(float)))
    # one that has a score for some of the prompts only cannot win by those
    whole = (found["scored"] > 0) & (found["scored"] == found.groupby(cell)["scored"].transform("max"))
    ordered = found[whole].sort_values(["accuracy", "off"], ascending=[False, True], kind="stable")
    best = ordered.drop_duplicates(cell)[[*cell, "rope_theta_factor"]]
    kept = part.merge(best, on=[*cell, "rope_theta_factor"])
    return kept.assign(series=kept["subject"].map(at_best_theta))


def at_best_theta(subject: str) -> str:
    """Return the name of a subject's series in which each cell has its best theta."""
    return f"{subject}, {BEST}"


def on_the_axis(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the grid's rows whose subject was run at several theta factors, RoPE otherwise as trained."""
    if "rope_theta_factor" not in rows:
        return rows.iloc[:0]
    factors = rows["rope_theta_factor"].astype(float)
    names = {
        factor: "as trained" if factor == 1 else f"theta x{factor:g}" for factor in factors.dropna().unique().tolist()
    }
    on = rows["control"].isna() & (rows["rope"] == factors.map(names))
    factors_of = rows.loc[on, ["subject", "rope_theta_factor"]].drop_duplicates().groupby("subject").nunique()
    several = factors_of.index[factors_of["rope_theta_factor"] > 1]
    return with_plan(rows[on & rows["subject"].isin(several)])
