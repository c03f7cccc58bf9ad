"""The figure of the needed scale: the best factor by length, model by model, and its laws (the paper's Figure 2, untrained)."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...statistics import LAWS, law_values
from .style import STYLE, belongs, colours, key_of, plain, tokens_axis

COLUMNS = 3
# of the laws' lines, in their order
DASHES = [
    (0, (1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (1, 3)),
    (0, ()),
    (0, (6, 2)),
    (0, (2, 2)),
    (0, (6, 2, 1, 2)),
    (0, (10, 3)),
]
# of what is scaled or read besides; layers and single heads, whose factors are far larger, have a table
MARKS = {"random-heads": "^", "whole-prompt": "s", "no-needle": "x"}


def needed_scale(
    ax: Axes,
    lines: pd.DataFrame,
    laws: pd.DataFrame,
    colour: str | tuple[float, float, float] = "C0",
    length: int | None = None,
) -> Axes:
    """Draw one series' best factors (statistics.needed_scale) with their intervals, and its laws (statistics.scale_laws) as thin lines.

    The law with the most weight is drawn in the series' colour. length: the training length.
    """
    name = str(lines["series"].iloc[0])
    laws = laws[(laws["scaled"] == "all") & laws["control"].isna() & (laws["series"] == name)]
    n = np.geomspace(lines["context_length"].min(), lines["context_length"].max(), 60)
    first = laws["weight"].max()
    for law, dash in zip(LAWS, DASHES, strict=True):
        for line in laws[laws["law"] == law.name].to_dict("records"):
            ours = line["weight"] == first
            ax.plot(n, law_values(line, n, length or 2), color=colour if ours else "0.5", lw=1.4 if ours else 0.8, ls=dash,
                    zorder=1, gid=key_of(name))  # fmt: skip
    main = lines[(lines["scaled"] == "all") & lines["control"].isna()]
    below, above = main["best"] - main["low"], main["high"] - main["best"]
    # a parabola's vertex can lie a hair outside of its draws
    error = np.nan_to_num([below.clip(lower=0), above.clip(lower=0)])
    drawn = ax.errorbar(main["context_length"], main["best"], error, color=colour, fmt="o", ms=5, capsize=2, zorder=3)
    belongs(drawn.get_children(), name)
    for what, mark in MARKS.items():
        part = lines[
            (lines["control"] == what) if what == "no-needle" else (lines["scaled"] == what) & lines["control"].isna()
        ]
        part = part[part["scaled"].isin([what, "all"])]
        if len(part):
            ax.plot(
                part["context_length"], part["best"], mark, color=colour, mfc="none", ms=4, alpha=0.7, gid=key_of(name)
            )
    ax.axhline(1, color="0.4", lw=0.8, zorder=0)
    tokens_axis(ax, {name: length}, "context length")
    ax.set(ylabel="best factor C on the answer's scores", title=plain(name))
    return ax


def needed_scale_figure(lines: pd.DataFrame, laws: pd.DataFrame, train_lengths: Mapping[str, int | None]) -> Figure:
    """Draw each series in a panel of its own, on the same axis of C."""
    names = [str(name) for name in lines["series"].unique()]
    across = min(COLUMNS, len(names))
    down = -(-len(names) // across)
    shown = lines[lines["control"].isna() | (lines["control"] == "no-needle")]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * across, 3.4 * down + 0.5), layout="constrained")
        axes = [*figure.subplots(down, across, squeeze=False, sharey=True).flat]
        for ax, (name, colour) in zip(axes, colours(names).items(), strict=False):
            needed_scale(ax, shown[shown["series"] == name], laws, colour, train_lengths.get(name))
            ax.label_outer(remove_inner_ticks=False)
            ax.xaxis.set_tick_params(labelbottom=True)
            ax.set_xlabel("context length")
        for ax in axes[len(names) :]:
            ax.set_axis_off()
        main = laws[(laws["scaled"] == "all") & laws["control"].isna()]
        there = [(law.said, dash) for law, dash in zip(LAWS, DASHES, strict=True) if (main["law"] == law.name).any()]
        handles = [mpl.lines.Line2D([], [], color="0.4", lw=1, ls=dash) for _, dash in there]
        words = [f"C = {name}" for name, _ in there]
        marked = [what for what in MARKS if ((shown["scaled"] == what) | (shown["control"] == what)).any()]
        handles += [mpl.lines.Line2D([], [], color="0.4", marker=MARKS[what], mfc="none", ls="") for what in marked]
        figure.legend(handles, [*words, *marked], loc="outside lower center", ncols=min(5, 2 * across), fontsize=7)
    return figure
