"""The query scale that a model's own answers ask for: a law through its needed scale, spelled as a mechanism."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from .. import statistics
from ..errors import UserError
from ..models.subjects import RunOptions
from ..probes import PROBES
from ..probes.needed_scale.options import NeededScaleOptions
from ..probes.needle.options import NeedleOptions
from ..readers.reader import Reader
from ..results import tables
from ..run import run_probes
from ..setting import Setting
from ..store import Run

log = logging.getLogger(__name__)
SPELLED = ("a", "s ln n", "a + b ln n")  # laws of the needed scale that a mechanism of ours is


def needed_scale(
    models: dict[str, Any], grid: NeedleOptions, options: RunOptions, readers: dict[str, Reader] | None = None
) -> list[Run]:
    """Measure the factor that a model's answers need at each length; no run of a model whose attention is out of reach."""
    same = {
        name: getattr(grid, name)
        for name in ("context_lengths", "depth_percents", "trials", "seed", "task", "haystack")
    }
    try:
        probe = PROBES["needed-scale"].make(models, NeededScaleOptions(**same))
        return run_probes([probe], models, [Setting()], options, readers)
    except UserError as error:
        log.warning("ssmax-eval: note: no query scale is fitted: %s", error)
        return []


def laws_of(runs: Sequence[Run], train_length: int | None) -> pd.DataFrame:
    """Return the laws of the needed scale by their names, of a model that attends by softmax; empty for others.

    What another mechanism needs beside its own C(n) is no mechanism of ours.
    """
    if not runs or runs[0].record()["attention"]["attention"] != "softmax":
        return pd.DataFrame()
    rows = statistics.with_series(tables(runs))
    found = statistics.scale_laws(statistics.best_factors(rows), dict.fromkeys(rows["series"], train_length))
    return found.set_index("law")


def fitted_scale(laws: pd.DataFrame, train_length: int | None) -> Setting | None:
    """Return the query scale whose law (laws_of) comes nearest to the needed one at lengths left out; None without laws."""
    if laws.empty:
        return None
    known = laws.loc[[law for law in SPELLED if law in laws.index and laws.loc[law, "error"] == laws.loc[law, "error"]]]
    if known.empty or (law := known["error"].idxmin()) is None:
        return None
    line = known.loc[law]
    if law == "a":
        return None if not train_length else Setting.of(f"constant-n:s={line['a'] / math.log(train_length):.4g}")
    return Setting.of(
        f"ssmax:s={line['s']:.4g}" if law == "s ln n" else f"ssmax-bias:s={line['b']:.4g},b={line['a']:.4g}"
    )
