"""Figures of needle grids: accuracy by length and depth, and the difference between two series."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D

from .style import ACCURACY, DIFFERENCE, STYLE, ink, key_of, plain


def depth_label(depth: float) -> str:
    return f"{depth:g}%"


def pivot(cells: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return a grid, depths from the top down by context lengths."""
    grid = cells.pivot(index="depth_percent", columns="context_length", values=value)
    return grid.sort_index().sort_index(axis=1)


def grid(ax: Axes, cells: pd.DataFrame, title: str = "", train_length: int | None = None) -> Axes:
    """Draw one series' cells (as statistics.cells gives them) as a heatmap, the mean of each length above it.

    Untested cells stay empty, cells of which no sample could be scored are hatched. A column `placed`, if there, says in each
    cell where its needles stand if that is not the depth asked for.
    """
    accuracy, failed = pivot(cells, "accuracy"), pivot(cells, "failed")
    heatmap(ax, accuracy, ACCURACY, 0, 1, ".2f")
    hatched(ax, accuracy.isna() & (failed > 0), "0.45")
    grouped = cells.assign(sum=cells["accuracy"] * cells["scored"]).groupby("context_length")[["sum", "scored"]].sum()
    for x, length in enumerate(accuracy.columns):
        mean = grouped.loc[length, "sum"] / grouped.loc[length, "scored"] if grouped.loc[length, "scored"] else None
        ax.text(
            x + 0.5,
            -0.15,
            "" if mean is None else f"{mean:.2f}",
            ha="center",
            va="bottom",
            fontsize=8,
            weight="bold",
        )
    if "placed" in cells and cells["placed"].notna().any():
        ax.set_ylabel("needle depth asked")
        placed = pivot(cells, "placed")
        for y, x in zip(*np.where(placed.notna()), strict=True):
            number = next((each for each in ax.texts if each.get_position() == (x + 0.5, y + 0.5)), None)
            ink = number.get_color() if number is not None else "0.15"  # the cell's number is readable on its colour
            ax.text(x + 0.5, y + 0.95, placed.iat[y, x], ha="center", va="bottom", fontsize=5, color=ink)
    mark_train_length(ax, list(accuracy.columns), train_length)
    ax.set_title(plain(title), pad=18)
    return ax


def difference(ax: Axes, comparison: pd.DataFrame, title: str = "") -> Axes:
    """Draw one series' lines of statistics.compare by cell, -1 to 1; a cell whose 95% interval holds 0 is hatched."""
    shown = pivot(comparison, "difference")
    heatmap(ax, shown, DIFFERENCE, -1, 1, "+.2f")
    open_ended = (pivot(comparison, "low") <= 0) & (pivot(comparison, "high") >= 0) & shown.notna()
    hatched(ax, open_ended, "0.55")
    ax.set_title(plain(title), pad=18)
    return ax


def hatched(ax: Axes, cells: pd.DataFrame, ink: str) -> None:
    """Hatch the cells of a grid that are true, as one shape: hundreds take seconds to draw."""
    squares = [mpl.path.Path.unit_rectangle().transformed(Affine2D().translate(x, y)) for y, x in np.argwhere(cells)]
    if squares:
        path = mpl.path.Path.make_compound_path(*squares)
        ax.add_patch(mpl.patches.PathPatch(path, facecolor="none", edgecolor=ink, hatch="////", lw=0))


def mark_train_length(ax: Axes, columns: list[int], train_length: int | None) -> None:
    """Draw a line between the lengths that the model was trained at and those beyond."""
    if train_length is None or not columns or not columns[0] <= train_length < columns[-1]:
        return
    x = sum(length <= train_length for length in columns)
    ax.axvline(x, color="black", lw=1.5, ls="--")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.9}
    said, middle = f"trained to {train_length:,}", sum(ax.get_ylim()) / 2
    ax.text(x, middle, said, color=ink("white"), fontsize=7, ha="center", va="center", rotation=90, bbox=box)


def heatmap(
    ax: Axes, grid: pd.DataFrame, colours: str, low: float, high: float, form: str, labels: list[str] | None = None
) -> None:
    """Draw a table with context lengths as columns; labels: its lines' names, depths if not given."""
    many = grid.size > 160
    sns.heatmap(
        grid,
        ax=ax,
        cmap=colours,
        vmin=low,
        vmax=high,
        annot=not many,
        fmt=form,
        annot_kws={"fontsize": 8},
        linewidths=0.5,
        linecolor="white",
        rasterized=many,  # thousands of cells as shapes would weigh more than all else on a page
        cbar=False,
        xticklabels=False,  # ours below: seaborn measures its own with a renderer each, gigabytes for many grids
        yticklabels=False,
    )
    ax.set_xlabel("context length (tokens)")
    ax.set_ylabel("needle depth")
    columns, rows = len(grid.columns), len(grid.index)
    lengths = [f"{length:,}" for length in grid.columns]
    ax.set_xticks(np.arange(columns) + 0.5, lengths, rotation=0 if columns < 7 else 45)
    ax.set_yticks(np.arange(rows) + 0.5, labels or [depth_label(depth) for depth in grid.index], rotation=0)


def completed(part: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Return a series' cells with untested ones for the lengths and depths that only other series have: same axes for all."""
    every = pd.MultiIndex.from_product([cells["depth_percent"].unique(), cells["context_length"].unique()])
    every.names = ["depth_percent", "context_length"]
    filled = part.set_index(every.names).reindex(every).reset_index()
    return filled.fillna({"trials": 0, "scored": 0, "failed": 0})


def grids(
    cells: pd.DataFrame, train_lengths: dict[str, int | None] | None = None, comparison: pd.DataFrame | None = None
) -> Figure:
    """Draw every series side by side, and below those in comparison (statistics.compare by cell) the difference."""
    series = cells["series"].unique().tolist()
    compared = set() if comparison is None else set(comparison["series"])
    parts = {name: completed(cells[cells["series"] == name], cells) for name in series}
    columns = min(len(series), 3)
    blocks = [series[i : i + columns] for i in range(0, len(series), columns)]
    lengths = cells["context_length"].nunique()
    depths = cells["depth_percent"].nunique()
    # inches, of one grid and of the labels around it
    grid_width, grid_height = max(2.4, 0.62 * lengths), max(0.9, 0.3 * depths)
    left, right, above, under = 0.75, 0.2, 0.8, 0.6
    width, height = grid_width + left + right, grid_height + above + under
    height_of_block = 2 if compared else 1
    rows = len(blocks) * height_of_block
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows))
        places = {
            "left": left / (width * columns),
            "right": 1 - right / (width * columns),
            "top": 1 - above / (height * rows),
            "bottom": under / (height * rows),
            "wspace": (left + right) / grid_width,
            "hspace": (above + under) / grid_height,
        }
        axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=places)
        for ax in axes.flat:
            ax.set_axis_off()
        for b, block in enumerate(blocks):
            for c, name in enumerate(block):
                top = axes[b * height_of_block, c]
                top.set_axis_on()
                top.set_gid(key_of(name))
                grid(top, parts[name], name, (train_lengths or {}).get(name))
                if comparison is not None and name in compared:
                    below = axes[b * 2 + 1, c]
                    below.set_axis_on()
                    below.set_gid(key_of(name))
                    own = comparison[comparison["series"] == name]
                    difference(below, own, f"{name}\nminus {own['baseline'].iloc[0]}")
    return figure
