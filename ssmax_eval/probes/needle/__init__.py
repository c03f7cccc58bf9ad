"""The probe `needle`: retrieval over a grid of context lengths and depths."""

from ..kind import Kind
from .options import GridShown, NeedleOptions
from .rows import NeedleRow

PROBE = Kind("needle", NeedleOptions, NeedleRow, __name__, GridShown, place=10)
