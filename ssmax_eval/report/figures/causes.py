"""Figures of why prompts were not found, and of RoPE theta as an axis."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...statistics import CAUSES
from .grids import heatmap
from .style import ACCURACY, STYLE, key_of, plain

# told apart by every kind of colour vision, and in grey by their hatching
SHADES = dict(zip(CAUSES, ("#4575b4", "#fee090", "#d73027", "#542788", "#cccccc"), strict=True))
HATCHES = dict(zip(CAUSES, ("", "..", "", "xx", "//"), strict=True))


def causes(ax: Axes, counts: pd.DataFrame, title: str = "") -> Axes:
    """Draw one series' lines of statistics.cause_counts as a stacked bar for each context length, shares of its prompts."""
    counts = counts.sort_values("context_length")
    places = range(len(counts))
    under = pd.Series(0.0, index=counts.index)
    for cause in CAUSES:
        share = counts[cause] / counts["prompts"]
        if share.any():
            ax.bar(
                places, share, bottom=under, width=0.85, color=SHADES[cause], hatch=HATCHES[cause], edgecolor="0.25",
                linewidth=0.4, label=cause,
            )  # fmt: skip
        under = under + share
    ax.set_xticks(places, [f"{length:,}" for length in counts["context_length"]], rotation=45)
    ax.set(ylim=(0, 1), xlabel="context length (tokens)", ylabel="share of prompts")
    ax.set_title(plain(title))
    sns.despine(ax=ax)
    return ax


def causes_figure(counts: pd.DataFrame) -> Figure:
    """Draw the causes of every series side by side."""
    series = [*dict.fromkeys(counts["series"])]
    columns = min(len(series), 4)
    rows = -(-len(series) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(6.5, 3.2 * columns), 3.1 * rows + 0.4), layout="constrained")
        axes = [*figure.subplots(rows, columns, squeeze=False, sharey=True).flat]
        for ax, name in zip(axes, series, strict=False):
            causes(ax, counts[counts["series"] == name], name).label_outer()
            ax.tick_params(labelbottom=True)
            ax.set_gid(key_of(name))
        for ax in axes[len(series) :]:
            ax.set_axis_off()
        shown = [cause for cause in CAUSES if counts[cause].any()]
        patches = [
            mpl.patches.Patch(facecolor=SHADES[cause], hatch=HATCHES[cause], edgecolor="0.25", lw=0.4)
            for cause in shown
        ]
        figure.legend(patches, shown, loc="outside lower center", ncols=len(shown), fontsize=8, frameon=False)
    return figure


def theta(ax: Axes, table: pd.DataFrame, title: str = "") -> Axes:
    """Draw one subject's lines of statistics.theta_lengths: accuracy by theta factor and context length, best of a length framed."""
    grid = table.pivot(index="rope_theta_factor", columns="context_length", values="accuracy").sort_index()
    heatmap(ax, grid, ACCURACY, 0, 1, ".2f", [f"×{factor:g}" for factor in grid.index])
    ax.set_ylabel("RoPE theta")
    for x, length in enumerate(grid.columns):
        best = grid[length].max()
        for y, factor in enumerate(grid.index):
            if grid.loc[factor, length] == best:
                ax.add_patch(
                    mpl.patches.Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, facecolor="none", edgecolor="black", lw=1.6)
                )
    ax.set_title(plain(title))
    return ax


def theta_figure(table: pd.DataFrame) -> Figure:
    """Draw theta by length of every subject."""
    subjects = [*dict.fromkeys(table["subject"])]
    columns = min(len(subjects), 3)
    rows = -(-len(subjects) // columns)
    wide = max(3.2, 0.62 * table["context_length"].nunique() + 1)
    high = 0.4 * table["rope_theta_factor"].nunique() + 1.4
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(wide * columns, high * rows), layout="constrained")
        axes = [*figure.subplots(rows, columns, squeeze=False).flat]
        for ax in axes[len(subjects) :]:
            ax.set_axis_off()
        for ax, name in zip(axes, subjects, strict=False):
            theta(ax, table[table["subject"] == name], name)
    return figure
