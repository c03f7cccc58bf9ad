"""The figure of advice: what a model finds as trained and in the setting advised, on prompts that decided nothing."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from .style import STYLE, colours, plain, tokens_axis


def advice_figure(by_length: pd.DataFrame, train_lengths: dict[str, int | None]) -> Figure:
    """Draw accuracy with its interval by context length, a part for each check.

    by_length: check, series, context_length, accuracy, low, high; the first check on the left. train_lengths: by series.
    """
    checks = [*dict.fromkeys(by_length["check"])]
    shades = colours([*dict.fromkeys(by_length["series"])])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(checks), 3.3), layout="constrained")
        for ax, check in zip(figure.subplots(1, len(checks), sharey=True, squeeze=False)[0], checks, strict=True):
            for name, shade in shades.items():
                part = by_length[(by_length["check"] == check) & (by_length["series"] == name)].sort_values(
                    "context_length"
                )
                ax.plot(
                    part["context_length"], part["accuracy"], color=shade, marker="o", ms=4, lw=2, label=plain(name)
                )
                ax.fill_between(part["context_length"], part["low"], part["high"], color=shade, alpha=0.15, lw=0)
            tokens_axis(ax, train_lengths, "context length")
            ax.set(ylim=(-0.02, 1.02), title=plain(check))
        figure.axes[0].set_ylabel("share found")
        figure.axes[0].legend(fontsize=7, frameon=False)
    return figure
