"""The figure of RoPE theta as an axis."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .grids import heatmap
from .style import ACCURACY, STYLE, plain


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
