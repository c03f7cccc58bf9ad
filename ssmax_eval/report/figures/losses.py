"""Figures of the loss by position (Figure 5 of the paper), and of what the far context is worth."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import STYLE, belongs, colours, key_of, plain, tokens_axis

MARGIN = 0.25  # nats around the curves


def loss(ax: Axes, curve: pd.DataFrame, train_lengths: dict[str, int | None] | None = None) -> Axes:
    """Draw statistics.loss_by_position: the loss of each position bin, its 95% interval a band (the paper's Figure 5)."""
    for name, colour in colours(curve["series"].unique().tolist()).items():
        part = curve[(curve["series"] == name) & curve["loss"].notna()]
        middle = np.sqrt(part["position_start"] * (part["position_end"] - 1).clip(lower=1))
        ax.plot(middle, part["loss"], color=colour, marker=".", lw=1.5, label=plain(name), gid=key_of(name))
        ax.fill_between(middle, part["low"], part["high"], color=colour, alpha=0.2, lw=0, gid=key_of(name))
    # the first bins hold a token each: their bands would flatten all that follows
    span = (curve["loss"].min(), curve["loss"].max())
    if np.isfinite(span).all():
        ax.set_ylim(span[0] - MARGIN, span[1] + MARGIN)
    tokens_axis(ax, train_lengths or {}, "tokens in front")
    ax.set_ylabel("loss, nats a token")
    ax.legend(fontsize=7)
    return ax


def context_gain(ax: Axes, gain: pd.DataFrame, train_lengths: dict[str, int | None] | None = None) -> Axes:
    """Draw statistics.context_gain over the length, with its interval; below 0 the far context helps."""
    for name, colour in colours(gain["series"].unique().tolist()).items():
        part = gain[gain["series"] == name]
        error = (part["context_gain"] - part["low"], part["high"] - part["context_gain"])
        drawn = ax.errorbar(
            part["position_end"], part["context_gain"], error, color=colour, marker="o", ms=4, lw=1.5, capsize=2
        )
        belongs(drawn.get_children(), name)
    ax.axhline(0, color="0.4", lw=0.8)
    tokens_axis(ax, train_lengths or {}, "context length")
    ax.set_ylabel("far context, nats a token\n(below 0: it helps)")
    return ax


def loss_figure(curve: pd.DataFrame, gain: pd.DataFrame, train_lengths: dict[str, int | None]) -> Figure:
    """Draw the loss by position and, where it was taken, the context gain beside it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10 if len(gain) else 6, 3.8), layout="constrained")
        axes = figure.subplots(1, 2 if len(gain) else 1, squeeze=False, width_ratios=[3, 2] if len(gain) else [1])[0]
        loss(axes[0], curve, train_lengths).set_title("loss by position")
        if len(gain):
            context_gain(axes[1], gain, train_lengths).set_title(
                f"what lies before the last {gain['window'].iloc[0]:,}"
            )
    return figure
