"""The figure of a league: what every mechanism finds at each length, and how far it reaches, a colour a family."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import ACCURACY, STYLE, colour, ink, plain

SHADES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#8a6b4f")
ALONE = "#808080"


def league_figure(standings: pd.DataFrame, by_length: pd.DataFrame, families: Mapping[str, str], length: int) -> Figure:
    """Draw statistics.standings, a line a configuration from the top, beside its accuracy at each length (over_seeds).

    families: of each configuration. length: that was trained at, in tokens.
    """
    names = [*standings["configuration"]]
    shades = family_colours([families[name] for name in names])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 1.4 + 0.27 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.15, 1])
        heat(left, names, by_length, length)
        reach(right, standings, [shades[families[name]] for name in names], length)
        edge = left.get_yaxis_transform()  # x of the axes, y of the lines
        for i, name in enumerate(names):
            bar = mpl.patches.Rectangle((-0.014, i - 0.42), 0.01, 0.84, transform=edge, clip_on=False, lw=0)
            bar.set_facecolor(shades[families[name]])
            left.add_patch(bar)
        told = {plain(family): shade for family, shade in shades.items() if shade != ALONE}
        told |= {"one of a kind": ALONE} if ALONE in shades.values() else {}
        handles = [mpl.lines.Line2D([], [], color=shade, marker="o", ls="") for shade in told.values()]
        figure.legend(handles, [*told], loc="outside lower center", fontsize=8, ncols=8)
    return figure


def family_colours(families: Sequence[str]) -> dict[str, str]:
    """Return a colour for each family of several lines, told apart by every kind of colour vision (after Tol); grey for the others."""
    counts = Counter(families)
    several = [family for family in counts if counts[family] > 1]
    shades = dict(zip(several, cycle(SHADES), strict=False))
    return {family: shades.get(family, ALONE) for family in counts}


def heat(ax: Axes, names: Sequence[str], by_length: pd.DataFrame, length: int) -> None:
    """Draw accuracy, the mean over seeds, a cell for each mechanism and length, its number in it."""
    table = by_length.pivot_table(index="configuration", columns="context_length", values="accuracy").reindex(names)
    values = table.to_numpy(dtype=float)
    ax.imshow(values, cmap=ACCURACY, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink(colour(float(value))))
    ax.set_xticks(range(len(table.columns)), [f"{n / length:g}x" for n in table.columns])
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set(xlabel=f"context length, times the {length:,} tokens trained at", title="needles found, mean over seeds")
    ax.tick_params(length=0)
    ax.tick_params(axis="y", pad=7)
    for side in ax.spines.values():
        side.set_visible(False)


def reach(ax: Axes, standings: pd.DataFrame, shades: Sequence[str], length: int) -> None:
    """Draw effective context lengths: the mean over seeds a dot, its interval a line, worst and best seed short strokes."""
    for i, (line, shade) in enumerate(zip(standings.to_dict("records"), shades, strict=True)):
        least, most, at = (line[name] / length for name in ("least", "most", "effective_length"))
        if not np.isnan(line["low"]):
            ax.plot([line["low"] / length, line["high"] / length], [i, i], color=shade, lw=1.2, alpha=0.5)
        ax.plot([least, most], [i, i], color=shade, lw=0, marker="|", ms=7)
        ax.plot([at], [i], color=shade, marker=">" if line["beyond"] == line["seeds"] else "o", ms=6, lw=0)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    ax.axvline(1, color="0.4", lw=1, ls="--", zorder=0)
    ax.grid(axis="x", color="0.5", alpha=0.3)
    ax.set_axisbelow(True)
    ax.set(
        xlabel="effective context length, times the tokens trained at",
        title="how far it reaches",
    )
    ax.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
