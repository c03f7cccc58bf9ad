"""The figure of why prompts were not found."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...statistics import CAUSES
from .style import STYLE, key_of, plain

# told apart by every kind of colour vision, and in grey by their hatching
SHADES = dict(zip(CAUSES, ("#4575b4", "#fee090", "#d73027", "#8c510a", "#542788", "#cccccc"), strict=True))
HATCHES = dict(zip(CAUSES, ("", "..", "", "--", "xx", "//"), strict=True))


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
    series = counts["series"].unique().tolist()
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
        figure.legend(patches, shown, loc="outside lower center", ncols=len(shown), fontsize=8)
    return figure
