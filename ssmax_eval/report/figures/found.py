"""The first picture of a page: the share of prompts found against context length, a line a series with its band."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import FEW, STYLE, TOLD_APART, belongs, colours, legend, plain, tokens_axis

LONG = 34  # characters of a name that has a line of the legend for itself


def found(
    ax: Axes,
    by_length: pd.DataFrame,
    train_lengths: Mapping[str, int | None],
    title: str = "",
    names: Sequence[str] = (),
) -> Axes:
    """Draw statistics.lengths: accuracy by context length, its 95% interval a band (at one length a line); of more than FEW series none.

    train_lengths: of each series. names: all series that have a colour of their own, also in other axes.
    """
    there = [*dict.fromkeys(by_length["series"])]
    for name, colour in colours([*(names or there)]).items():
        if name not in there:
            continue
        part = by_length[by_length["series"] == name].dropna(subset=["accuracy"]).sort_values("context_length")
        many = len(names or there) > FEW
        line = {"ms": 3, "lw": 1.2} if many else {"ms": 4, "lw": 2}
        drawn: list[Artist] = [
            *ax.plot(part["context_length"], part["accuracy"], color=colour, marker="o", label=plain(name), **line)
        ]
        known = ~((part["low"] == 0) & (part["high"] == 1))  # too few trials for an interval: no band says so
        if not many and known.any():
            drawn.append(
                ax.fill_between(
                    part["context_length"], part["low"], part["high"], known, color=colour, alpha=0.13, lw=0
                )
            )
            alone = part[known & ~known.shift(1, fill_value=False) & ~known.shift(-1, fill_value=False)]
            # between two lengths there is a band, at one alone a line
            drawn.append(ax.vlines(alone["context_length"], alone["low"], alone["high"], color=colour, alpha=0.4, lw=2))
        belongs(drawn, name)
    tokens_axis(ax, dict(train_lengths), "context length, tokens")
    ax.set(ylim=(-0.02, 1.02), title=plain(title))
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    return ax


def found_figure(
    panels: Mapping[str, pd.DataFrame], train_lengths: Mapping[str, int | None], what: str = "prompts found"
) -> Figure:
    """Draw a panel for each of some tasks, by its title; one legend for all. what: the share that is drawn."""
    names = [*dict.fromkeys(name for by_length in panels.values() for name in by_length["series"])]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    # one panel fits a phone's width with letters that can be read
    shades = legend(names)
    across = (2 if max(map(len, names), default=0) <= LONG else 1) * columns
    below = 0.16 * -(-len(shades) // across)  # inches of the legend's lines
    size = (4.8, 3.0 + below) if len(panels) == 1 else (1.6 + 3.4 * columns, 3.3 * rows + below)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = [*figure.subplots(rows, columns, sharey=True, squeeze=False).flat]
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, by_length) in zip(axes, panels.items(), strict=False):
            found(ax, by_length, train_lengths, title if len(panels) > 1 else "", names)
        for ax in axes[::columns]:
            ax.set_ylabel(what)
        if 1 < len(shades) <= TOLD_APART:
            handles = [mpl.lines.Line2D([], [], color=shade, marker="o", ms=4, lw=2) for shade in shades.values()]
            figure.legend(
                handles, [plain(name) for name in shades], loc="outside lower center", fontsize=7, ncols=min(len(shades), across),
            )  # fmt: skip
    return figure
