"""What all figures share: colours, fonts, an axis of tokens, and how they become SVG, PNG and PDF."""

import hashlib
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
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
FEW, TOLD_APART = 7, 10  # series that each have a colour of their own; colours that are told apart
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ssmax_eval",
    "font.family": "sans-serif",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,  # a frame would be light in the dark
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def plain(text: str) -> str:
    """Return text that matplotlib draws as it is, not as mathematics and not hidden, in lines that fit over a grid."""
    text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)  # control characters end an SVG
    lines = "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, 38) or [""]).replace("$", r"\$")
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


def groups(series: Sequence[str]) -> dict[str, str]:
    """Return what each series is drawn as: itself, of many its training without the seed, or its mechanism, if that makes them few."""
    for name_of in (str, without_seed, mechanism_of):
        found = {name: name_of(name) for name in series}
        if len(set(found.values())) <= (FEW if name_of is str else TOLD_APART):
            return found
    return {name: name for name in series}


def without_seed(series: str) -> str:
    """Return `label (mechanism)` without the `-s0` that ends the label of a model of several seeds."""
    return re.sub(r"-s\d+(?= \(|$)", "", series)


def mechanism_of(series: str) -> str:
    """Return what stands in brackets behind a series' label, the series itself without."""
    return series.rpartition(" (")[2].removesuffix(")")


def legend(series: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Return the colour of everything that has one: of each series, of many of each group."""
    names = [*dict.fromkeys(groups(series).values())]
    palette = sns.color_palette("colorblind" if len(names) <= TOLD_APART else "husl", max(len(names), 1))
    return dict(zip(names, palette, strict=True)) if names else {}


def colours(series: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Return one colour a series, up to ten told apart by every kind of colour vision; many share those of their groups."""
    shades = legend(series)
    return {name: shades[group] for name, group in groups(series).items()}


def tokens_axis(ax: Axes, train_lengths: dict[str, int | None], label: str) -> None:
    """Make x a logarithmic axis of tokens, with a line at each training length."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    ax.tick_params(axis="x", labelrotation=45)
    ax.set_xlabel(label)
    lengths = sorted({length for length in train_lengths.values() if length})
    for length in lengths:
        ax.axvline(length, color="0.4", lw=1, ls="--", zorder=0)
    if lengths:  # above the axes, where no line hides it
        top = ax.secondary_xaxis("top")
        top.set_xticks(lengths, [f"trained to {lengths[0]:,}", *(f"{length:,}" for length in lengths[1:])])
        top.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        top.tick_params(length=0, labelsize=7, pad=1)
        top.spines["top"].set_visible(False)
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
