"""All series of a task in one table, before their grids."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.colors import to_hex

from ...report import figures
from ...report.context import reached
from ...report.figures.style import colours

MANY = 3  # series from which a table of all stands before the grids


def overview(
    title: str,
    means: pd.DataFrame,
    reach_of: pd.DataFrame,
    trained: Mapping[str, int | None],
    names: Sequence[str],
) -> dict[str, Any]:
    """Return a line for each series of a task, those that find most first: what it finds at each length, and how far it reaches.

    means, reach_of: statistics.lengths and effective_lengths. names: all series that have a colour in the picture above.
    """
    shades = {name: to_hex(colour) for name, colour in colours([*names]).items()}
    lengths = sorted(int(n) for n in means["context_length"].unique())
    reach = {line["series"]: line for line in reach_of.to_dict("records")}
    order = means.groupby("series", sort=False)["accuracy"].mean().sort_values(ascending=False, kind="stable")
    lines = []
    for name in map(str, order.index):
        at = means[means["series"] == name].set_index("context_length")["accuracy"]
        cells = [None if math.isnan(at.get(n, math.nan)) else tinted(float(at[n])) for n in lengths]
        lines.append(
            {
                "series": name,
                "key": figures.key_of(name),
                "colour": shades[name],
                "trained": f"{trained[name]:,}" if trained.get(name) else "",
                "cells": cells,
                "reach": reached(reach[name], "effective_length", "beyond") if name in reach else "",
            }
        )
    return {"title": title, "lengths": lengths, "lines": lines}


def tinted(accuracy: float) -> dict[str, str]:
    """Return an accuracy as text, on its colour."""
    background = figures.colour(accuracy)
    return {"text": f"{accuracy:.2f}", "background": background, "ink": figures.ink(background)}
