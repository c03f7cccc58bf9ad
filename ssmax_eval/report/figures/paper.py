"""The figures of the paper's study, each from its table (studies/paper_numbers.py)."""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .grids import grid as needle_grid
from .style import ACCURACY, STYLE, plain, tokens_axis

SMALL = (6.4, 3.8)  # inches
ACROSS = 4  # panels beside each other where there is one for each configuration
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#777777")
DASHES: tuple[Any, ...] = ("-", "-", "-", (0, (6, 2)), (0, (2, 1)), (0, (6, 2, 1, 2)), (0, (1, 1)))


def panels(count: int, across: int = 3, width: float = 3.7, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, `across` beside each other."""
    down = -(-count // across)
    figure = Figure(figsize=(width * min(count, across), height * down), layout="constrained")
    axes = [*figure.subplots(down, min(count, across), squeeze=False).flat]
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes


def maximum_figure(lengths: pd.DataFrame) -> Figure:
    """Draw mechanisms.fading.by_length: the weight of +3 among n - 1 scores of -2 (Figure 1)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SMALL, layout="constrained")
        ax = figure.subplots()
        named = lengths.assign(attention=lengths["attention"].map(said))
        sns.lineplot(named, x="n", y="weight", hue="attention", marker="o", palette="colorblind", ax=ax)
        ax.set(xscale="log", xlabel="n, keys", ylabel="largest weight", ylim=(-0.02, 1.02))
        ax.legend(loc="center right")
        sns.despine(ax=ax)
    return figure


def learned_p_figure(p: pd.DataFrame, needed: pd.DataFrame, length: int) -> Figure:
    """Draw the learned p_n of each seed with its fit a1 ln n + a2 (Figure 2), and the scale that trained softmax needs."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = panels(2, width=4.6, height=3.6)
        for colour, (seed, part) in zip(cycle(sns.color_palette("colorblind")), p.groupby("seed"), strict=False):
            left.plot(part["n"], part["p"], color=colour, lw=0, marker=".", ms=3, label=f"seed {seed}")
            inner = part[(part["n"] > 1) & (part["n"] < part["n"].max())]
            left.plot(inner["n"], inner["fitted"], color=colour, lw=1.2)
        left.set(xscale="log", xlabel="n, keys", ylabel="p_n", title="learned p_n, and a1 ln n + a2 fitted to it")
        if len(p):
            left.legend(fontsize=8)
        found = [*needed.groupby("seed")]
        for i, (colour, (seed, part)) in enumerate(zip(cycle(sns.color_palette("colorblind")), found, strict=False)):
            error = np.nan_to_num(
                [(part["best"] - part["low"]).clip(lower=0), (part["high"] - part["best"]).clip(lower=0)]
            )
            right.errorbar(
                part["context_length"] * 2 ** (0.07 * (i - (len(found) - 1) / 2)),  # beside each other
                part["best"],
                error,
                color=colour,
                marker="o",
                ms=4,
                capsize=2,
                lw=1,
                label=f"seed {seed}",
            )
        right.axhline(1, color="0.4", lw=0.8, zorder=0)
        right.legend(fontsize=8)
        tokens_axis(right, {"": length}, "context length, tokens")
        right.set(ylabel="best factor on the answer's scores", title="needed scale of (a), no training")
        sns.despine(ax=left)
    return figure


def lead_figure(leads: pd.DataFrame, s: float) -> Figure:
    """Draw mechanisms.fading.by_lead: a score's weight by its lead over all others and n, with the threshold 1/s (Figure 3)."""
    with mpl.rc_context(STYLE):
        figure, axes = panels(leads["attention"].nunique(), width=4.6, height=3.6)
        for ax, (name, part) in zip(axes, leads.groupby("attention", sort=False), strict=True):
            sns.lineplot(
                part,
                x="lead",
                y="weight",
                hue="n",
                hue_norm=mpl.colors.LogNorm(),
                palette="viridis",
                ax=ax,
                legend="full",
            )
            if name != "softmax":
                ax.axvline(1 / s, color="0.4", ls="--", lw=1)
                ax.annotate(f"1/s = {1 / s:.2f}", (1 / s, 0.02), (3, 0), textcoords="offset points", fontsize=8)
            ax.set(xlabel="lead of the largest score", ylabel="its weight", title=said(str(name)), ylim=(-0.02, 1.02))
            for text in ax.legend(title="n, keys", fontsize=8).get_texts():
                text.set_text(f"{int(text.get_text()):,}")
            sns.despine(ax=ax)
    return figure


def training_loss_figure(logs: pd.DataFrame, at_end: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Draw the loss on text of each configuration over the tokens seen, the mean over seeds, then its last third (Figure 4).

    at_end: the loss at the end minus that of (a) of the same seed, a line a seed (letter, seed, difference), drawn at the right.
    """
    with mpl.rc_context(STYLE):
        figure, axes = panels(3, width=4.3, height=3.8)
        by_seed(axes[2], at_end, "difference", names)
        axes[2].axvline(0, color="0.4", lw=0.8, zorder=0)
        axes[2].set(xlabel="nats a token, at the end", title="minus (a), seed by seed")
        mean = logs.groupby(["letter", "tokens"])["text_loss"].mean().reset_index()
        last = mean[mean["tokens"] > mean["tokens"].max() * 2 / 3]
        for ax, part in zip(axes[:2], (mean, last), strict=True):
            for letter in names:
                line = part[part["letter"] == letter]
                if len(line):
                    ax.plot(line["tokens"] / 1e6, line["text_loss"], lw=1.6, label=names[letter], **look(names, letter))
            ax.set(xlabel="tokens seen, millions", ylabel="loss on text, nats a token")
            sns.despine(ax=ax)
        axes[0].set_title("all of the training")
        axes[1].set_title("its last third")
        axes[0].legend(fontsize=7)
    return figure


def position_figure(losses: pd.DataFrame, names: Mapping[str, str], length: int, beyond: int) -> Figure:
    """Draw the loss by position of each configuration, the mean over seeds, worst and best a band (Figure 5).

    beyond: times the training length from which on positions are shaded.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        ax = figure.subplots()
        for letter, colour in shades(names).items():
            part = losses[(losses["letter"] == letter) & (losses["position_end"] > 8)]
            if part.empty:
                continue
            middle = np.sqrt(part["position_start"].clip(lower=1) * (part["position_end"] - 1).clip(lower=1))
            ax.plot(middle, part["loss"], marker=".", lw=1.4, label=names[letter], **look(names, letter))
            ax.fill_between(middle, part["min"], part["max"], color=colour, alpha=0.12, lw=0)
        if len(losses):
            ax.axvspan(beyond * length, losses["position_end"].max(), color="0.5", alpha=0.12, lw=0, zorder=0)
        tokens_axis(ax, {"": length}, "position, tokens")
        ax.set(ylabel="loss, nats a token")
        ax.legend(fontsize=7)
    return figure


def needles_figure(cells: pd.DataFrame, names: Mapping[str, str], length: int) -> Figure:
    """Draw a grid of what each configuration finds, the mean over seeds, by context length and depth (Figure 6)."""
    there = [letter for letter in names if (cells["letter"] == letter).any()]
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(there), across=ACROSS, width=3.6, height=3.3)
        for ax, letter in zip(axes, there, strict=False):
            needle_grid(ax, cells[cells["letter"] == letter], names[letter], length)
        outer_labels(axes[: len(there)])
        shade = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), ACCURACY)
        figure.colorbar(shade, ax=axes, location="right", shrink=0.5, label="share found")
    return figure


def by_seed_figure(table: pd.DataFrame, names: Mapping[str, str], times: str) -> Figure:
    """Draw what each configuration finds far beyond the training length, a dot a seed (letter, seed, found), a stroke their mean.

    times: how far, in words.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.9 + 0.34 * table["letter"].nunique()), layout="constrained")
        ax = figure.subplots()
        by_seed(ax, table, "found", names)
        ax.set(xlim=(-0.02, 1.02), xlabel=f"found at {times} times the training length")
        ax.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    return figure


def by_seed(ax: Axes, table: pd.DataFrame, value: str, names: Mapping[str, str]) -> Axes:
    """Draw a value of each configuration, a dot a seed and a stroke at their mean, one below the other."""
    there = [letter for letter in names if (table["letter"] == letter).any()]
    for place, letter in enumerate(there):
        own = table.loc[table["letter"] == letter, value].astype(float)
        colour = shades(names)[letter]
        ax.plot([own.mean()], [place], "|", color=colour, ms=16, mew=2)
        ax.plot(own, np.full(len(own), place), "o", color=colour, ms=5, alpha=0.75, mew=0)
    ax.set_yticks(range(len(there)), [plain(names[letter]) for letter in there])
    ax.set_ylim(len(there) - 0.5, -0.5)
    ax.grid(axis="y", color="0.5", alpha=0.2)
    sns.despine(ax=ax)
    return ax


def outer_labels(axes: list[Axes]) -> None:
    """Leave the names of the axes to panels that have none beside or below them."""
    for i, ax in enumerate(axes):
        if i % ACROSS:
            ax.set_ylabel("")
            ax.set_yticklabels([])
        if i + ACROSS < len(axes):
            ax.set_xlabel("")


def said(attention: str) -> str:
    """Name a mechanism of Figures 1 and 3."""
    return attention if "s=" not in attention else f"SSMax, s = {attention.partition('s=')[2]}"


def shades(names: Mapping[str, str]) -> dict[str, str]:
    """Return the colour of each configuration, the same in every figure: told apart by every kind of colour vision (after Tol)."""
    return dict(zip(names, COLOURS, strict=False))


def look(names: Mapping[str, str], letter: str) -> dict[str, Any]:
    """Return how a configuration's line looks: colour and dashes, so that lines upon each other are both seen."""
    return {"color": shades(names)[letter], "ls": DASHES[[*names].index(letter)]}
