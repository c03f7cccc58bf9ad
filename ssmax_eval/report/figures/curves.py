"""Curves of training logs: loss on text, recall, and what the mechanisms learned, over the tokens seen."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from .style import STYLE, colours, legend, plain

FEW, COLUMNS = 6, 4  # models named inside a panel; names beside each other below the panels
PANELS = {
    "text_loss": "loss on text, nats a token",
    "recall": "answers' tokens right",
    "s_mean": "s: mean and range over heads",
}


def curves(log: pd.DataFrame) -> Figure:
    """Draw the training logs of one or more models, told apart by column `model`. log: the lines of training_log.jsonl."""
    log = log.assign(model=log["model"].map(plain)).reset_index(
        drop=True
    )  # logs put below each other repeat their numbers
    panels = [name for name in PANELS if name in log]
    with mpl.rc_context(STYLE):
        names = [*dict.fromkeys(log["model"])]
        below = (
            -(-len(names) // COLUMNS) * 0.2 if len(names) > FEW else 0.0
        )  # inches for names that do not fit into a panel
        figure = Figure(figsize=(3.6 * len(panels), 2.8 + below), layout="constrained")
        shades = colours(names)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, name in zip(axes, panels, strict=True):
            inside = ax is axes[0] and not below
            sns.lineplot(log, x="tokens", y=name, hue="model", ax=ax, palette=shades, legend=inside)
            if name == "s_mean":
                for model, part in log.groupby("model", sort=False):
                    colour = shades[str(model)]
                    ax.fill_between(part["tokens"], part["s_min"], part["s_max"], color=colour, alpha=0.15, linewidth=0)
            ax.set(xlabel="tokens", ylabel="", title=PANELS[name])
            ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M")
            sns.despine(ax=ax)
        if below:
            grouped = legend(names)
            lines = [mpl.lines.Line2D([], [], color=colour) for colour in grouped.values()]
            figure.legend(lines, [*grouped], loc="outside lower center", ncols=COLUMNS, fontsize=7)
    return figure
