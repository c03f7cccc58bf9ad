"""Figures of attention: Figures 7 and 8 of the paper, mass by length, and what fades."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from ...statistics import BY_TRIAL, CONFIDENCE, FEWEST
from .style import STYLE, belongs, colours, key_of, legend, plain, tokens_axis

NAMED_INSIDE = 3  # series that a legend within the axes names; more would lie on their lines
DRAWN = 200  # prompts of a series and length
SHOWN_HEADS, FEWEST_HEADS = (
    25,
    8,
)  # as many as the paper's Figure 7 shows; of a small model those with mass, and no fewer
SEEN = 0.02  # mass of a head that is more than a line along 0
MARKS = {"right": "o", "first token": "^", "wrong": "x"}
RETRIEVES = 0.1  # mean mass on the answer at the shortest length from which a head counts as one that retrieves


def span_of_masses(ax: Axes) -> tuple[float, float]:
    """Return the limits of an axis of masses: 0 to 1, wider where weights do not sum to 1 or are negative."""
    low, high = ax.dataLim.intervaly
    return min(0.0, low if abs(low) < float("inf") else 0.0) - 0.02, max(
        1.0, high if abs(high) < float("inf") else 1.0
    ) + 0.02


def sorted_heads(ax: Axes, scores: pd.DataFrame, length: int) -> Axes:
    """Draw the heads' mean mass on the answer at one length, from the highest down (the paper's Figure 7)."""
    there = scores[scores["context_length"] == length]
    with_mass = (there["mass_answer"] >= SEEN).groupby(there["series"]).sum()
    shown = min(SHOWN_HEADS, max([FEWEST_HEADS, *(with_mass + 1)]))  # the others are a line along 0
    for name, colour in colours(scores["series"].unique().tolist()).items():
        part = there[there["series"] == name]
        best = part["mass_answer"].sort_values(ascending=False).head(shown).to_numpy()
        ax.plot(range(1, len(best) + 1), best, color=colour, marker=".", lw=1.2, label=plain(name), gid=key_of(name))
    ax.set(ylim=span_of_masses(ax), xlabel="heads, sorted", ylabel="mass on the answer", title=f"{length:,} tokens")
    sns.despine(ax=ax)
    return ax


def sorted_trials(ax: Axes, top: pd.DataFrame, length: int) -> Axes:
    """Draw each prompt's highest mass over all heads, prompts sorted, marked by the verdict (the paper's Figure 8).

    Of more than DRAWN prompts of a series, so many are drawn.
    """
    most = top[top["context_length"] == length]["series"].value_counts().max()
    label = "prompts, sorted" if not most > DRAWN else f"prompts, sorted; {DRAWN} of a series drawn"
    for name, colour in colours(top["series"].unique().tolist()).items():
        part = top[(top["series"] == name) & (top["context_length"] == length)]
        part = part.sort_values("mass_answer", ascending=False).assign(place=range(1, len(part) + 1))
        if len(part) > DRAWN:  # evenly over the places: more marks hide each other
            part = part.iloc[np.linspace(0, len(part) - 1, DRAWN).round().astype(int)]
        for verdict, mark in MARKS.items():
            marked = part[part["verdict"] == verdict]
            ax.scatter(
                marked["place"],
                marked["mass_answer"],
                color=colour,
                marker=mark,
                s=14,
                linewidths=0.9,
                gid=key_of(name),
            )
    ax.set(ylim=span_of_masses(ax), xlabel=label, ylabel="highest mass of a head", title=f"{length:,} tokens")
    sns.despine(ax=ax)
    return ax


def mass_by_length(
    ax: Axes, by_head: pd.DataFrame, train_lengths: dict[str, int | None] | None = None, measure: str = "mass_answer"
) -> Axes:
    """Draw each prompt's highest mass (a measure of statistics.HEAD) over n, mean and 95% interval of each series.

    The interval is a bootstrap over prompts; with plan 2, Student's t over the trials' means, none for fewer than FEWEST.
    """
    prompt = ["series", "context_length", "cluster", "prompt_sha256"]
    best = by_head.groupby(prompt, sort=False)[measure].max().reset_index()
    by_trial = bool((by_head["plan"] == BY_TRIAL).any())
    if by_trial:
        best = best.groupby(prompt[:3], sort=False)[measure].mean().reset_index()
    for name, colour in colours(by_head["series"].unique().tolist()).items():
        before = set(ax.get_children())
        sns.lineplot(
            best[best["series"] == name], x="context_length", y=measure, color=colour, ax=ax, marker="o", seed=0,
            errorbar=over_trials if by_trial else ("ci", 95), label=plain(name), legend=False,
        )  # fmt: skip
        belongs([artist for artist in ax.get_children() if artist not in before], name)
    tokens_axis(ax, train_lengths or {}, "context length")
    ax.set(ylim=span_of_masses(ax), ylabel="highest mass of a head")
    return ax


def over_trials(means: "pd.Series[float]") -> tuple[float, float]:
    """Return Student's 95% interval of the mean of trials' means; NaN for too few."""
    if means.count() < FEWEST:
        return float("nan"), float("nan")
    half = means.sem() * stats.t.ppf((1 + CONFIDENCE) / 2, means.count() - 1)
    return means.mean() - half, means.mean() + half


def exponents(ax: Axes, fits: pd.DataFrame) -> Axes:
    """Draw the fading exponent b of heads that retrieve against their learned s, with its interval.

    fits: statistics.fading with columns s (0 for softmax, whose scale does not grow; NaN is left out) and mass_answer at
    the shortest length; heads below RETRIEVES there are left out.
    """
    shown = fits[(fits["mass_answer"] >= RETRIEVES) & fits["s"].notna() & fits["b"].notna()]
    for name, colour in colours(fits["series"].unique().tolist()).items():
        part = shown[shown["series"] == name]
        error = (part["b"] - part["low"], part["high"] - part["b"])
        drawn = ax.errorbar(part["s"], part["b"], error, fmt="o", ms=4, color=colour, elinewidth=0.8, label=plain(name))
        belongs(drawn.get_children(), name)
    ax.axhline(-1, color="0.4", lw=0.8, ls=":")
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(xlabel="learned s of the head (softmax: 0)", ylabel="exponent b")
    sns.despine(ax=ax)
    return ax


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
        both = bool(by_head["mass_next"].notna().any())  # needle and answer may have other tokens
        axes = upper.subplots(1, 2 + both)
        mass_by_length(axes[0], by_head, train_lengths).set_title("on the answer, from its first row")
        if both:
            mass_by_length(axes[1], by_head, train_lengths, "mass_next").set_title(
                "on the token to write next, all rows"
            )
        exponents(axes[-1], fits).set_title("heads that retrieve: b = -1 fades as softmax must,\nb = 0 does not")
        shades = legend(by_head["series"].unique().tolist())
        handles = [mpl.lines.Line2D([], [], color=c, lw=3) for c in shades.values()]
        names = [plain(name) for name in shades]
        if len(names) <= NAMED_INSIDE:
            axes[0].legend(handles, names, fontsize=7)
        else:
            upper.legend(handles, names, loc="outside right center", fontsize=7)
        for ax, length in zip(heads.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown, strict=True):
            sorted_heads(ax, scores, length).label_outer()
        last = trials.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for ax, length in zip(last, shown, strict=True):
            sorted_trials(ax, top, length).label_outer()
        marks = [mpl.lines.Line2D([], [], color="0.5", marker=mark, ls="", ms=4) for mark in MARKS.values()]
        last[-1].legend(marks, MARKS, fontsize=7)
    return figure
