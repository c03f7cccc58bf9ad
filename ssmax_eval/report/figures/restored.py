"""The figure of what attention given back repairs."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import STYLE, key_of, plain

GIVEN, CONTROL = "#4575b4", "#d73027"


def restored(ax: Axes, lines: pd.DataFrame, said: dict[str, str]) -> Axes:
    """Draw the share of failed prompts that each axis repairs, a bar with its interval; a cross is as many other heads.

    lines: of statistics.restored, one series, one length, given back to prompts that were wrong. said: what axes are
    called, in their order from the top.
    """
    at = lines.set_index("axis").reindex([axis for axis in said if axis in set(lines["axis"])])
    places = range(len(at))
    told = (at["low"] > 0) | (at["high"] < 1)  # else too few trials for an interval
    error = [(end - at["share"]).abs().where(told, 0) for end in (at["low"], at["high"])]
    ax.barh(places, at["share"], xerr=error, color=GIVEN, height=0.7, error_kw={"elinewidth": 0.8, "ecolor": "0.25"})
    ax.scatter(at["others_share"], places, color=CONTROL, marker="x", s=22, zorder=3)
    ax.set_yticks(places, [plain(said[axis]) for axis in at.index])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="share repaired")
    sns.despine(ax=ax)
    return ax


def restored_figure(lines: pd.DataFrame, said: dict[str, str]) -> Figure:
    """Draw every series of lines of statistics.restored in a row, from the left a panel for each length at which prompts failed."""
    failed = lines[(lines["done"] == "given") & (lines["was"] == "wrong")]
    own = {str(name): sorted(part["context_length"].unique()) for name, part in failed.groupby("series", sort=False)}
    across = max(map(len, own.values()))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 + 2.2 * across, 0.9 + 2.6 * len(own)), layout="constrained")
        grid = figure.subplots(len(own), across, squeeze=False)
        for line, (name, lengths) in zip(grid, own.items(), strict=True):
            for i, ax in enumerate(line):
                ax.set_gid(key_of(name))
                if i >= len(lengths):
                    ax.set_axis_off()
                    continue
                part = failed[(failed["series"] == name) & (failed["context_length"] == lengths[i])]
                restored(ax, part, said)
                title = f"{lengths[i]:,} tokens: {part['prompts'].max()} failed"
                ax.set_title(plain(f"{name}\n{title}" if len(own) > 1 else title), fontsize=9)
                if i:
                    ax.set_yticklabels([])
                else:
                    ax.set_ylabel("attention given back")
        marks = [
            mpl.patches.Patch(facecolor=GIVEN, label="given back to the heads that hold it"),
            mpl.lines.Line2D([], [], color=CONTROL, marker="x", ls="", label="to as many other heads"),
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8)
    return figure
