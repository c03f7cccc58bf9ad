"""The first picture of a page: the share of prompts found against context length, a line a series with its band."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import STYLE, belongs, colours, plain, tokens_axis

NAMED = 10  # series whose names stand beside the picture; more are in the tables, furthest first


def found(
    ax: Axes,
    by_length: pd.DataFrame,
    train_lengths: Mapping[str, int | None],
    title: str = "",
    names: Sequence[str] = (),
) -> Axes:
    """Draw statistics.lengths: accuracy by context length, its 95% interval a band.

    train_lengths: of each series. names: all series that have a colour of their own, also in other axes.
    """
    there = [*dict.fromkeys(by_length["series"])]
    for name, colour in colours([*(names or there)]).items():
        if name not in there:
            continue
        part = by_length[by_length["series"] == name].dropna(subset=["accuracy"]).sort_values("context_length")
        lines = ax.plot(
            part["context_length"], part["accuracy"], color=colour, marker="o", ms=4, lw=2, label=plain(name)
        )
        band = ax.fill_between(part["context_length"], part["low"], part["high"], color=colour, alpha=0.13, lw=0)
        belongs([*lines, band], name)
    tokens_axis(ax, dict(train_lengths), "context length, tokens")
    ax.set(ylim=(-0.02, 1.02), title=plain(title))
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    return ax


def found_figure(panels: Mapping[str, pd.DataFrame], train_lengths: Mapping[str, int | None]) -> Figure:
    """Draw a panel for each of some tasks, by its title; one legend for all."""
    names = [*dict.fromkeys(name for by_length in panels.values() for name in by_length["series"])]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + (5.4 if columns == 1 else 3.4) * columns, 3.5 * rows), layout="constrained")
        axes = [*figure.subplots(rows, columns, sharey=True, squeeze=False).flat]
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, by_length) in zip(axes, panels.items(), strict=False):
            found(ax, by_length, train_lengths, title if len(panels) > 1 else "", names)
        for ax in axes[::columns]:
            ax.set_ylabel("prompts found")
        handles = {label: each for ax in axes for each, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        if 1 < len(handles) <= NAMED:
            figure.legend(
                [*handles.values()],
                [*handles],
                loc="outside lower center",
                fontsize=8,
                frameon=False,
                ncols=min(len(handles), 3),
            )
    return figure
