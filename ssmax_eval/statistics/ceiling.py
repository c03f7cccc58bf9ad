"""Long prompts held against the needle alone: what of a model's own ceiling is left at each length."""

import numpy as np
import pandas as pd

from .clusters import BY_TRIAL, CONFIDENCE, FEWEST, PLACE, clusters, with_plan
from .kinds import on_prompts
from .reach import SHARE, drawn, drawn_trials, on_common_depths
from .series import PROMPT, TASK, told

COLUMNS = "context_length accuracy ceiling prompts alone share low high holds".split()


@on_prompts
def ceilings(rows: pd.DataFrame, share: float = SHARE, seed: int = 0) -> pd.DataFrame:
    """Return a line for each series and length: accuracy, and its share of the ceiling, the accuracy at the needle-only control.

    Where a question has other words than its fact, a model may not know the answer however short the prompt, so that its base
    score is what long prompts are compared with (as NoLiMa does, arXiv 2502.05167, section 4). low and high bound the share's 95%
    interval, by the bootstrap of effective_lengths; NaN of fewer than FEWEST trials, or of fewer prompts alone: without a
    haystack a needle without slots is one prompt, however many trials. holds: at least `share` of the ceiling.
    prompts, alone: how many are behind the two. No line of a series without that control, or whose ceiling is 0.
    """
    lines = []
    every = with_plan(told(rows[rows["correct"].notna()], [*PROMPT, *PLACE, "correct"]))
    for key, part in every.groupby([*TASK, "series"], sort=False):
        alone = part[part["control"] == "needle-only"]
        grid = on_common_depths(part[part["control"].isna()])
        if grid.empty or not alone["correct"].any():
            continue
        both = pd.concat([alone.assign(context_length=0), grid])
        both = both.assign(cluster=clusters(both), region=clusters(both, by_length=False))
        both = both.assign(right=both["correct"].astype(float))
        lengths = sorted(grid["context_length"].unique())
        by_length = [both[both["context_length"] == length] for length in (0, *lengths)]
        by_trial = both["plan"].iloc[0] == BY_TRIAL
        draws = (drawn_trials if by_trial else drawn)(by_length, seed)[..., 0]
        bounds = np.quantile(draws[:, 1:] / draws[:, :1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        if by_trial and min(both["region"].nunique(), len(alone)) < FEWEST:
            bounds[:] = np.nan
        ceiling = float(by_length[0]["right"].mean())
        for length, at, low, high in zip(lengths, by_length[1:], *bounds, strict=True):
            accuracy = float(at["right"].mean())
            lines.append(
                dict(zip([*TASK, "series"], key, strict=True))
                | {"context_length": int(length), "accuracy": accuracy, "ceiling": ceiling, "prompts": len(at)}
                | {"alone": len(alone), "share": accuracy / ceiling, "low": low, "high": high}
                | {"holds": accuracy >= share * ceiling - 1e-9}
            )
    return pd.DataFrame(lines, columns=[*TASK, "series", *COLUMNS])
