"""All series of a task in one table, before their grids."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.colors import to_hex

from ...report import figures
from ...report.context import reached
from ...report.figures.style import colours
from ...statistics import SHARE

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
    tested = means.dropna(subset=["accuracy"]).groupby("series", sort=False)["context_length"].agg(frozenset)
    usual = (
        tested.value_counts(sort=False).idxmax() if len(tested) else frozenset()
    )  # the lengths that most series have
    same = means[means["context_length"].isin(usual)].groupby("series", sort=False)["accuracy"]
    order = same.mean().where(same.count() == len(usual)).reindex(means["series"].unique())
    order = order.sort_values(ascending=False, kind="stable")
    lines = []
    for name in map(str, order.index):
        at = {line["context_length"]: line for line in means[means["series"] == name].to_dict("records")}
        enough = SHARE * reach[name]["accuracy"] if name in reach else math.inf
        cells = [tinted(at[n], enough) if n in at and not math.isnan(at[n]["accuracy"]) else None for n in lengths]
        lines.append(
            {
                "series": name,
                "key": figures.key_of(name),
                "colour": shades[name],
                "trained": f"{trained[name]:,}" if trained.get(name) else "",
                "cells": cells,
                "mean": "–" if math.isnan(order[name]) else f"{order[name]:.2f}",
                "reach": reached(reach[name], "effective_length", "beyond") if name in reach else "",
            }
        )
    return {"title": title, "lengths": lengths, "lines": lines}


def tinted(line: Mapping[Hashable, Any], enough: float) -> dict[str, Any]:
    """Return an accuracy as text on its colour, its interval, and whether it is enough."""
    background = figures.colour(line["accuracy"])
    interval = f"95% interval {line['low']:.2f} to {line['high']:.2f}, {line['scored']:,} prompts"
    return {
        "text": f"{line['accuracy']:.2f}",
        "background": background,
        "ink": figures.ink(background),
        "interval": interval,
        "kept": line["accuracy"] >= enough,
    }
