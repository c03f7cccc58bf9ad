"""What all figures share: colours, fonts, an axis of tokens, and how they become SVG, PNG and PDF."""

import hashlib
import io
import re
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_hex, to_rgb
from matplotlib.figure import Figure

from ...disk import whole

# both can be told apart by every kind of colour vision
ACCURACY = "RdYlBu"
DIFFERENCE = "PuOr"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ssmax_eval",
    "font.family": "sans-serif",
    "hatch.linewidth": 0.6,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def plain(text: str) -> str:
    """Return text that matplotlib draws as it is, not as mathematics and not hidden, in lines that fit over a grid."""
    text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)  # control characters end an SVG
    lines = "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, 38)).replace("$", r"\$")
    return f" {lines}" if lines.startswith("_") else lines  # a legend leaves out what starts with _


def colour(value: float, difference: bool = False) -> str:
    """Return the hex colour of an accuracy (0 to 1) or of a difference (-1 to 1)."""
    return to_hex(shades(difference)((value + 1) / 2 if difference else value))


@cache
def shades(difference: bool) -> Colormap:
    """Return the colours of accuracies or of differences: once, as matplotlib makes its table anew for each that asks."""
    return mpl.colormaps[DIFFERENCE if difference else ACCURACY]


def ink(background: str) -> str:
    """Return (nearly) black or white, whichever is read more easily on a colour (WCAG relative luminance).

    Nearly: what is wholly black in a figure is the page's ink, which is light in the dark.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#010101" if luminance > 0.179 else "#fff"


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


def key_of(series: str) -> str:
    """Return a name for a series that can stand in HTML and CSS: what belongs to it on a page has it as its class."""
    return "series-" + hashlib.sha256(series.encode()).hexdigest()[:8]


def belongs(artists: Iterable[Artist], series: str) -> None:
    """Mark artists as a series' own, so that a page can hide them with it."""
    for artist in artists:
        artist.set_gid(key_of(series))


@contextmanager
def see_through(figure: Figure) -> Iterator[None]:
    """Draw axes without a background while a block runs: that of the page is behind them."""
    before = [(ax.patch, ax.patch.get_visible()) for ax in figure.axes]
    for patch, _ in before:
        patch.set_visible(False)
    try:
        yield
    finally:
        for patch, visible in before:
            patch.set_visible(visible)


def svg(figure: Figure) -> str:
    """Return a figure as an <svg> element, the same bytes for the same figure; what has a series' key as its gid gets it as class."""
    out = io.StringIO()
    with mpl.rc_context(STYLE), see_through(figure):
        figure.savefig(
            out, format="svg", facecolor="none", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    # black is the page's ink: light in the dark
    text = (
        out.getvalue().replace("stroke: #000000", "stroke: currentColor").replace("fill: #000000", "fill: currentColor")
    )
    text = re.sub(r' id="(series-[0-9a-f]{8})"', r' class="\1"', text[text.index("<svg") :])
    # numbered ids name nothing, and would stand on the page once for each figure
    return re.sub(r' id="[\w.]+_\d+"', "", text)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG, PNG and PDF, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("svg", "png", "pdf")]
    with mpl.rc_context(STYLE):
        for path in paths:
            with whole(path) as half:
                figure.savefig(half, dpi=160)
    return paths
