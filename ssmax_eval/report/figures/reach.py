"""How an effective length narrows as tokens are read, and accuracy by length with the crossing marked."""

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from .style import STYLE, belongs, colours, plain, tokens_axis


def reach_figure(
    narrowed: pd.DataFrame, accuracy: pd.DataFrame, train_lengths: Mapping[str, int | None], share: float
) -> Figure:
    """Draw two panels, a colour a series.

    narrowed: series, tokens read, effective_length, low, high, a line a round; high at most the longest length. accuracy: series,
    context_length, accuracy, low, high, seen (NaN where no prompt was read), prompts. share: of the accuracy at the shortest
    length, where the crossing is.
    """
    names = [*dict.fromkeys(narrowed["series"])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, colour in colours(names).items():
            part = narrowed[narrowed["series"] == name]
            lines = left.step(
                part["tokens"], part["effective_length"], where="post", color=colour, lw=2, label=plain(name)
            )
            band = left.fill_between(
                part["tokens"], part["low"], part["high"], step="post", color=colour, alpha=0.15, lw=0
            )
            curve = accuracy[accuracy["series"] == name]
            lines += right.plot(curve["context_length"], curve["accuracy"], color=colour, lw=2, label=plain(name))
            sure = right.fill_between(
                curve["context_length"], curve["low"], curve["high"], color=colour, alpha=0.13, lw=0
            )
            seen = right.scatter(
                curve["context_length"], curve["seen"], s=4 + curve["prompts"], color=colour, alpha=0.7, lw=0
            )
            end = part.iloc[-1]
            level = right.plot(
                [curve["context_length"].min(), end["effective_length"]],
                [share * curve["accuracy"].iloc[0]] * 2,
                color=colour,
                lw=1,
                ls=":",
            )
            crossing = right.errorbar(
                end["effective_length"],
                share * curve["accuracy"].iloc[0],
                xerr=[[end["effective_length"] - end["low"]], [end["high"] - end["effective_length"]]],
                color=colour,
                marker="D",
                ms=5,
                capsize=3,
            )
            belongs([*lines, band, sure, seen, *level, *crossing.get_children()], name)
        left.set_yscale("log", base=2)
        left.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
        left.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        left.tick_params(axis="x", labelrotation=45)
        left.set(xlabel="tokens read", ylabel="effective context length, tokens")
        tokens_axis(right, dict(train_lengths), "context length, tokens")
        right.set(ylim=(-0.02, 1.02), ylabel="prompts found")
        right.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
        left.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            right.legend(fontsize=8, frameon=False)
    return figure
