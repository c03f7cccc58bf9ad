"""The figures of the paper's study on heads: Figures 7 and 8, and the learned s beside what each head does."""

from collections.abc import Mapping
from itertools import cycle

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .heads import FEWEST_HEADS, MARKS, SEEN, SHOWN_HEADS
from .paper import ACROSS, look, outer_labels, panels, shades
from .style import STYLE, plain

VERDICTS = ("#4477AA", "#CCBB44", "#CC3311")  # right, the first token only, wrong


def heads_figure(heads: pd.DataFrame, names: Mapping[str, str], most: int = SHOWN_HEADS) -> Figure:
    """Draw the heads' mass on the answer from the highest down, the mean over seeds place by place (Figure 7).

    As many as the paper shows, or as have some mass: a small model's other heads would be a line along 0.
    """
    with_mass = heads.loc[heads["mass_answer"] >= SEEN, "place"]
    shown = min(most, max(FEWEST_HEADS, int(with_mass.max()) + 1 if len(with_mass) else 0))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        ax = figure.subplots()
        for letter, colour in shades(names).items():
            part = heads[(heads["letter"] == letter) & (heads["place"] <= shown)]
            if part.empty:
                continue
            ax.plot(part["place"], part["mass_answer"], marker=".", lw=1.4, label=names[letter], **look(names, letter))
            ax.fill_between(part["place"], part["min"], part["max"], color=colour, alpha=0.1, lw=0)
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        ax.set(xlabel="heads, the one with the most first", ylabel="mass on the answer", ylim=(-0.02, 1.02))
        ax.legend(fontsize=7)
        sns.despine(ax=ax)
    return figure


def top_heads_figure(top: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Draw each prompt's highest mass over all heads, prompts of all seeds sorted, marked by the verdict (Figure 8)."""
    there = [letter for letter in names if (top["letter"] == letter).any()]
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(there), across=ACROSS, width=3.2, height=2.7)
        for ax, letter in zip(axes, there, strict=False):
            part = top[top["letter"] == letter].sort_values("mass_answer", ascending=False)
            part = part.assign(place=np.arange(1, len(part) + 1))
            for (verdict, mark), colour in zip(MARKS.items(), VERDICTS, strict=True):
                own = part[part["verdict"] == verdict]
                ax.plot(own["place"], own["mass_answer"], mark, color=colour, ms=3, lw=0, label=verdict)
            ax.set(
                title=plain(names[letter]), xlabel="prompts, sorted", ylabel="mass of the top head", ylim=(-0.02, 1.02)
            )
            sns.despine(ax=ax)
        outer_labels(axes[: len(there)])
        lines = [
            mpl.lines.Line2D([], [], color=colour, marker=mark, ls="")
            for mark, colour in zip(MARKS.values(), VERDICTS, strict=True)
        ]
        words = {"right": "whole number right", "first token": "only the first token right", "wrong": "wrong"}
        figure.legend(lines, [words[name] for name in MARKS], loc="outside lower center", ncols=3, fontsize=8)
    return figure


def s_and_mass_figure(s: pd.DataFrame) -> Figure:
    """Draw each head's mass on the answer against its learned s, a colour a layer, a mark a seed: do large s retrieve, or layers?"""
    layers, seeds = sorted(s["layer"].unique()), sorted(s["seed"].unique())
    colours = sns.color_palette("colorblind", len(layers))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        ax = figure.subplots()
        for colour, layer in zip(colours, layers, strict=True):
            for mark, seed in zip(cycle("os^Dv<>"), seeds, strict=False):
                part = s[(s["layer"] == layer) & (s["seed"] == seed)]
                ax.plot(part["s"], part["mass_answer"], mark, color=colour, ms=5, alpha=0.8, mew=0)
        handles = [mpl.lines.Line2D([], [], color=each, marker="o", ls="") for each in colours]
        handles += [
            mpl.lines.Line2D([], [], color="0.5", marker=m, ls="")
            for m, _ in zip(cycle("os^Dv<>"), seeds, strict=False)
        ]
        words = [*(f"layer {layer}" for layer in layers), *(f"seed {seed}" for seed in seeds)]
        figure.legend(handles, words, loc="outside right center", fontsize=8)
        ax.set(xlabel="learned s of the head", ylabel="mass on the answer", ylim=(-0.02, 1.02))
        sns.despine(ax=ax)
    return figure


def learned_s_figure(s: pd.DataFrame) -> Figure:
    """Draw the learned s of each layer and head of (b), a row of panels for s and one for the mass on the answer, a column a seed."""
    seeds = sorted(s["seed"].unique())
    with mpl.rc_context(STYLE):
        figure, axes = panels(2 * len(seeds), across=len(seeds), width=3.1, height=2.2)
        for i, seed in enumerate(seeds):
            part = s[s["seed"] == seed]
            for row, (value, title) in enumerate((("s", "learned s"), ("mass_answer", "mass on the answer"))):
                ax = axes[row * len(seeds) + i]
                table = part.pivot(index="layer", columns="head", values=value)
                low, high = (0.0, 1.0) if value == "mass_answer" else (s["s"].min(), s["s"].max())
                sns.heatmap(
                    table,
                    ax=ax,
                    cmap="viridis",
                    vmin=low,
                    vmax=high,
                    annot=table.size <= 64,
                    fmt=".2f",
                    annot_kws={"size": 6},
                    cbar=False,
                )
                ax.set(title=f"seed {seed}: {title}", xlabel="head", ylabel="layer")
    return figure
