"""Figures of losses and of attention: Figures 5, 7 and 8 of the paper, and what fades; they take an Axes and return it."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import STYLE, plain

SHOWN_HEADS = 25  # as many as the paper's Figure 7 shows
MARKS = {"right": "o", "first token": "^", "wrong": "x"}
MARGIN = 0.25  # nats around the curves
RETRIEVES = 0.1  # mean mass on the answer at the shortest length from which a head counts as one that retrieves


def colours(series: list[str]) -> dict[str, tuple[float, float, float]]:
    """Return one colour a series, up to ten of them told apart by every kind of colour vision."""
    palette = sns.color_palette("colorblind" if len(series) <= 10 else "husl", max(len(series), 1))
    return dict(zip(series, palette, strict=False))


def tokens_axis(ax: Axes, train_lengths: dict[str, int | None], label: str) -> None:
    """Make x a logarithmic axis of tokens, with a line at each training length."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    ax.tick_params(axis="x", labelrotation=45)
    ax.set_xlabel(label)
    for length in sorted({length for length in train_lengths.values() if length}):
        ax.axvline(length, color="0.4", lw=1, ls="--", zorder=0)
        ax.annotate(
            f"trained to {length:,}", (length, 1), (2, -2), xycoords=("data", "axes fraction"), fontsize=7, va="top",
            textcoords="offset points", rotation=90,
        )  # fmt: skip
    sns.despine(ax=ax)


def loss(ax: Axes, curve: pd.DataFrame, train_lengths: dict[str, int | None] | None = None) -> Axes:
    """Draw statistics.loss_by_position: the loss of each position bin, its 95% interval a band (the paper's Figure 5)."""
    for name, colour in colours([*dict.fromkeys(curve["series"])]).items():
        part = curve[(curve["series"] == name) & curve["loss"].notna()]
        middle = np.sqrt(part["position_start"] * (part["position_end"] - 1).clip(lower=1))
        ax.plot(middle, part["loss"], color=colour, marker=".", lw=1.5, label=plain(name))
        ax.fill_between(middle, part["low"], part["high"], color=colour, alpha=0.2, lw=0)
    # the first bins hold a token each: their bands would flatten all that follows
    span = (curve["loss"].min(), curve["loss"].max())
    if np.isfinite(span).all():
        ax.set_ylim(span[0] - MARGIN, span[1] + MARGIN)
    tokens_axis(ax, train_lengths or {}, "tokens in front")
    ax.set_ylabel("loss, nats a token")
    ax.legend(fontsize=7, frameon=False)
    return ax


def context_gain(ax: Axes, gain: pd.DataFrame, train_lengths: dict[str, int | None] | None = None) -> Axes:
    """Draw statistics.context_gain over the length, with its interval; below 0 the far context helps."""
    for name, colour in colours([*dict.fromkeys(gain["series"])]).items():
        part = gain[gain["series"] == name]
        error = (part["context_gain"] - part["low"], part["high"] - part["context_gain"])
        ax.errorbar(
            part["position_end"], part["context_gain"], error, color=colour, marker="o", ms=4, lw=1.5, capsize=2
        )
    ax.axhline(0, color="0.4", lw=0.8)
    tokens_axis(ax, train_lengths or {}, "context length")
    ax.set_ylabel("gain of far context, nats a token")
    return ax


def sorted_heads(ax: Axes, scores: pd.DataFrame, length: int) -> Axes:
    """Draw the heads' mean mass on the answer at one length, from the highest down (the paper's Figure 7)."""
    for name, colour in colours([*dict.fromkeys(scores["series"])]).items():
        part = scores[(scores["series"] == name) & (scores["context_length"] == length)]
        best = part["mass_answer"].sort_values(ascending=False).head(SHOWN_HEADS).to_numpy()
        ax.plot(range(1, len(best) + 1), best, color=colour, marker=".", lw=1.2, label=plain(name))
    ax.set(ylim=(-0.02, 1.02), xlabel="heads, sorted", ylabel="mass on the answer", title=f"{length:,} tokens")
    sns.despine(ax=ax)
    return ax


def sorted_trials(ax: Axes, top: pd.DataFrame, length: int) -> Axes:
    """Draw each prompt's highest mass over all heads, prompts sorted, marked by the verdict (the paper's Figure 8)."""
    for name, colour in colours([*dict.fromkeys(top["series"])]).items():
        part = top[(top["series"] == name) & (top["context_length"] == length)]
        part = part.sort_values("mass_answer", ascending=False).assign(place=range(1, len(part) + 1))
        for verdict, mark in MARKS.items():
            marked = part[part["verdict"] == verdict]
            ax.scatter(marked["place"], marked["mass_answer"], color=colour, marker=mark, s=14, linewidths=0.9)
    ax.set(ylim=(-0.02, 1.02), xlabel="prompts, sorted", ylabel="highest mass of a head", title=f"{length:,} tokens")
    sns.despine(ax=ax)
    return ax


def mass_by_length(
    ax: Axes, by_head: pd.DataFrame, train_lengths: dict[str, int | None] | None = None, measure: str = "mass_answer"
) -> Axes:
    """Draw each prompt's highest mass (a measure of statistics.HEAD) over n, mean and 95% interval of each series, by bootstrap."""
    best = by_head.groupby(["series", "context_length", "prompt_sha256"], sort=False)[measure].max().reset_index()
    shades = colours([*dict.fromkeys(by_head["series"])])
    sns.lineplot(
        best, x="context_length", y=measure, hue="series", palette=shades, ax=ax, marker="o", legend=False, seed=0
    )
    tokens_axis(ax, train_lengths or {}, "context length")
    ax.set(ylim=(-0.02, 1.02), ylabel="highest mass of a head")
    return ax


def exponents(ax: Axes, fits: pd.DataFrame) -> Axes:
    """Draw the fading exponent b of heads that retrieve against their learned s, with its interval.

    fits: statistics.fading with columns s (0 for softmax, whose scale does not grow; NaN is left out) and mass_answer at
    the shortest length; heads below RETRIEVES there are left out.
    """
    shown = fits[(fits["mass_answer"] >= RETRIEVES) & fits["s"].notna() & fits["b"].notna()]
    for name, colour in colours([*dict.fromkeys(fits["series"])]).items():
        part = shown[shown["series"] == name]
        error = (part["b"] - part["low"], part["high"] - part["b"])
        ax.errorbar(part["s"], part["b"], error, fmt="o", ms=4, color=colour, elinewidth=0.8, label=plain(name))
    ax.axhline(-1, color="0.4", lw=0.8, ls=":")
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(xlabel="learned s of the head (softmax: 0)", ylabel="exponent b")
    sns.despine(ax=ax)
    return ax


def loss_figure(curve: pd.DataFrame, gain: pd.DataFrame, train_lengths: dict[str, int | None]) -> Figure:
    """Draw the loss by position and, where it was taken, the context gain beside it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10 if len(gain) else 6, 3.8), layout="constrained")
        axes = figure.subplots(1, 2 if len(gain) else 1, squeeze=False, width_ratios=[3, 2] if len(gain) else [1])[0]
        loss(axes[0], curve, train_lengths).set_title("loss by position")
        if len(gain):
            context_gain(axes[1], gain, train_lengths).set_title(
                f"what lies before the last {gain['window'].iloc[0]:,}"
            )
    return figure


def attention_figure(
    by_head: pd.DataFrame,
    scores: pd.DataFrame,
    top: pd.DataFrame,
    fits: pd.DataFrame,
    train_lengths: dict[str, int | None],
) -> Figure:
    """Draw mass over n and exponents against s, then heads sorted and prompts sorted for up to four lengths."""
    lengths = sorted(by_head["context_length"].unique())
    shown = lengths if len(lengths) <= 4 else [lengths[round(i * (len(lengths) - 1) / 3)] for i in range(4)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 9), layout="constrained")
        upper, heads, trials = figure.subfigures(3, 1, squeeze=False)[:, 0]
        axes = upper.subplots(1, 3)
        mass_by_length(axes[0], by_head, train_lengths).set_title("on the answer, from its first row")
        mass_by_length(axes[1], by_head, train_lengths, "mass_next").set_title("on the token to write next, all rows")
        exponents(axes[2], fits).set_title("heads that retrieve: b = -1 fades as softmax must,\nb = 0 does not")
        handles = [
            mpl.lines.Line2D([], [], color=c, lw=3) for c in colours([*dict.fromkeys(by_head["series"])]).values()
        ]
        axes[0].legend(handles, [plain(name) for name in dict.fromkeys(by_head["series"])], fontsize=7, frameon=False)
        for ax, length in zip(heads.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown, strict=True):
            sorted_heads(ax, scores, length).label_outer()
        last = trials.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for ax, length in zip(last, shown, strict=True):
            sorted_trials(ax, top, length).label_outer()
        marks = [mpl.lines.Line2D([], [], color="0.2", marker=mark, ls="", ms=4) for mark in MARKS.values()]
        last[-1].legend(marks, MARKS, fontsize=7, frameon=False)
    return figure
