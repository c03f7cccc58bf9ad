"""Figures: functions that take an Axes and return it, and those that draw a whole Figure."""

from .causes import causes, causes_figure
from .curves import PANELS, curves
from .fading import fading_figure, save_as
from .found import found, found_figure
from .grids import difference, grid, grids, pivot
from .heads import attention_figure, exponents, mass_by_length, sorted_heads, sorted_trials
from .league import league_figure
from .losses import context_gain, loss, loss_figure
from .needed import needed_scale, needed_scale_figure
from .paper import (
    by_seed_figure,
    lead_figure,
    learned_p_figure,
    maximum_figure,
    needles_figure,
    position_figure,
    said,
    training_loss_figure,
)
from .paper_heads import heads_figure, learned_s_figure, s_and_mass_figure, top_heads_figure
from .reach import reach_figure
from .restored import restored, restored_figure
from .seeds import seeds, seeds_figure
from .style import FEW, colour, ink, key_of, save, svg
from .theta import theta, theta_figure

__all__ = [
    "FEW",
    "PANELS",
    "attention_figure",
    "by_seed_figure",
    "causes",
    "causes_figure",
    "colour",
    "context_gain",
    "curves",
    "difference",
    "exponents",
    "fading_figure",
    "found",
    "found_figure",
    "grid",
    "grids",
    "heads_figure",
    "ink",
    "key_of",
    "lead_figure",
    "league_figure",
    "learned_p_figure",
    "learned_s_figure",
    "loss",
    "loss_figure",
    "mass_by_length",
    "maximum_figure",
    "needed_scale",
    "needed_scale_figure",
    "needles_figure",
    "pivot",
    "position_figure",
    "reach_figure",
    "restored",
    "restored_figure",
    "s_and_mass_figure",
    "said",
    "save",
    "save_as",
    "seeds",
    "seeds_figure",
    "sorted_heads",
    "sorted_trials",
    "svg",
    "theta",
    "theta_figure",
    "top_heads_figure",
    "training_loss_figure",
]  # fmt: skip
