"""The plot of `ssmax-eval fading`: weights of one large score by n and by its lead."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ...disk import whole
from ...errors import UserError
from .style import STYLE

KINDS = (".svg", ".png", ".pdf")


def fading_figure(lengths: pd.DataFrame, leads: pd.DataFrame) -> Figure:
    """Draw mechanisms.fading's by_length (Figure 1 of the paper) and by_lead, a line for each scale and, right, each n."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        sns.lineplot(lengths, x="n", y="weight", hue="attention", marker="o", palette="colorblind", ax=left)
        left.set(xscale="log", ylabel="largest weight", title="+3 among n - 1 scores of -2")
        sns.lineplot(leads, x="lead", y="weight", hue="attention", size="n", sizes=(0.6, 2.2), size_norm=mpl.colors.LogNorm(),
                     palette="colorblind", ax=right)  # fmt: skip
        right.set(xlabel="lead of the largest score", title="by lead and n (thicker: larger)")
        right.legend(fontsize=7)
        for ax in (left, right):
            sns.despine(ax=ax)
    return figure


def save_as(figure: Figure, path: Path) -> None:
    """Write a figure in the kind that its name says. Raises UserError."""
    if path.suffix not in KINDS:
        raise UserError(f"figure {str(path)!r}: allowed are names that end with {', '.join(KINDS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE), whole(path) as half:
        figure.savefig(half, dpi=160)
