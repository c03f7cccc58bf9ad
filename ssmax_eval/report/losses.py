"""The page's part on losses: one section for each text and length."""

from typing import Any

import pandas as pd

from .. import statistics
from . import figures
from .context import Context


def section(number: int, rows: pd.DataFrame, context: Context) -> dict[str, Any]:
    """Return what the template shows of one text at one length."""
    curve, gain = statistics.loss_by_position(rows), statistics.context_gain(rows)
    text, length = rows["text"].iloc[0], int(rows["context_length"].iloc[0])
    series = rows["series"].unique().tolist()
    return {
        "heading": f"loss, text {text}, {length:,} tokens",
        "figure": context.drawn(figures.loss_figure(curve, gain, context.train_lengths(rows)), f"loss-{number:02}"),
        "series": series,
        "documents": curve.groupby("series", sort=False)["documents"].max().to_dict(),
        "failed": int(curve.groupby("series")["failed"].max().sum()),
        "window": int(rows["window"].iloc[0]),
        "positions": lined(curve, "loss", ["position_start", "position_end"], series),
        "gains": lined(gain, "context_gain", ["position_end"], series),
    }


def lined(table: pd.DataFrame, value: str, by: list[str], series: list[str]) -> list[dict[str, Any]]:
    """Return the lines of a table: what it is by, and (value, low, high) of each series, None where there is none."""
    out = []
    for key, part in table.groupby(by):
        at = {line["series"]: line for line in part.to_dict("records")}
        cells = [triple(at[name], value) if name in at else None for name in series]
        out.append({"at": [int(each) for each in key], "cells": cells})
    return out


def triple(line: dict[str, Any], value: str) -> tuple[float, float | None, float | None] | None:
    """Return a value with its interval, None where it is missing."""
    found = [None if pd.isna(line[name]) else float(line[name]) for name in (value, "low", "high")]
    return None if found[0] is None else (found[0], found[1], found[2])
