"""The figure of several training seeds: each seed a line, their mean and its interval a band."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import STYLE, colours, plain, tokens_axis


def seeds(ax: Axes, by_length: pd.DataFrame, each: pd.DataFrame | None = None) -> Axes:
    """Draw statistics.over_seeds: the mean over seeds by context length, its 95% interval a band; each: its seeds as thin lines.

    each: configuration, series, context_length and accuracy.
    """
    for name, colour in colours([*dict.fromkeys(by_length["configuration"])]).items():
        part = by_length[by_length["configuration"] == name].sort_values("context_length")
        ax.plot(part["context_length"], part["accuracy"], color=colour, marker="o", ms=4, lw=2, label=plain(name))
        ax.fill_between(part["context_length"], part["low"], part["high"], color=colour, alpha=0.15, lw=0)
        if each is not None:
            for _, line in each[each["configuration"] == name].groupby("series"):
                line = line.sort_values("context_length")
                ax.plot(line["context_length"], line["accuracy"], color=colour, lw=0.7, ls=":")
    tokens_axis(ax, {}, "context length")
    ax.set(ylim=(-0.02, 1.02), ylabel="accuracy, mean over training seeds")
    ax.legend(fontsize=7)
    return ax


def seeds_figure(by_length: pd.DataFrame, each: pd.DataFrame) -> Figure:
    """Draw the seeds of all configurations on one axis."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        seeds(figure.subplots(), by_length, each)
    return figure
