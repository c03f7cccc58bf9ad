"""The probe `ruler`: RULER's tasks at exact lengths, with its own partial credit."""

from ..kind import Kind
from .options import RulerOptions
from .rows import RulerRow

PROBE = Kind("ruler", RulerOptions, RulerRow, __name__, place=15, in_run=False)
