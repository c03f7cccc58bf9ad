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
    """Draw every series of lines of statistics.restored in a row, a panel for each length at which prompts failed."""
    failed = lines[(lines["done"] == "given") & (lines["was"] == "wrong")]
    series, lengths = failed["series"].unique().tolist(), sorted(failed["context_length"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3 + 2.4 * len(lengths), 0.9 + 2.6 * len(series)), layout="constrained")
        grid = figure.subplots(len(series), len(lengths), squeeze=False, sharex=True)
        for line, name in zip(grid, series, strict=True):
            for i, (ax, length) in enumerate(zip(line, lengths, strict=True)):
                part = failed[(failed["series"] == name) & (failed["context_length"] == length)]
                ax.set_gid(key_of(name))
                if part.empty:
                    ax.set_axis_off()
                    continue
                restored(ax, part, said)
                ax.set_title(
                    plain(f"{name}\n" if len(series) > 1 else "") + f"{length:,}: {part['prompts'].max()} failed"
                )
                if i:
                    ax.set_yticklabels([])
        marks = [
            mpl.patches.Patch(facecolor=GIVEN, label="given back to the heads that hold it"),
            mpl.lines.Line2D([], [], color=CONTROL, marker="x", ls="", label="to as many other heads"),
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
