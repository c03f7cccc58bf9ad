"""The page's part on why prompts were not found."""

from typing import Any

import pandas as pd

from .. import statistics
from ..statistics.causes import RESTS_ON
from ..statistics.series import told
from . import figures
from .context import Context


def section(number: int, heading: str, rows: pd.DataFrame, context: Context) -> dict[str, Any] | None:
    """Return what the template shows of one task's causes of failure; None where no row has what they rest on."""
    if "top_mass_answer" not in rows:
        return None
    explained = statistics.with_causes(told(rows, [*RESTS_ON, "depth_percent"]), context.thresholds)
    explained = explained[explained.groupby("series")["mass_there"].transform("count") > 0]
    if explained.empty:
        return None
    counts = statistics.cause_counts(explained)
    cells = statistics.cause_counts(explained, ("context_length", "depth_percent"))
    shown = [cause for cause in statistics.CAUSES if counts[cause].any()]
    return {
        "heading": heading,
        "figure": context.drawn(figures.causes_figure(counts), f"causes-{number:02}"),
        "thresholds": context.thresholds,
        "causes": shown,
        "tables": [
            {"series": name, "key": figures.key_of(str(name)), "lines": part.to_dict("records"),
             "cells": cells[cells["series"] == name].to_dict("records")}
            for name, part in counts.groupby("series", sort=False)
        ],
    }  # fmt: skip
