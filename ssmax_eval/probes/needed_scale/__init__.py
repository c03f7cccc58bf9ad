"""The probe `needed-scale`: by how much the answer's rows have to sharpen their scores, by length, whatever the model's own law."""

from ..kind import Kind
from .options import NeededScaleOptions
from .rows import NeededScaleRow

BEST = "a line for each series, context length and what is scaled: the best factor (statistics.needed_scale)"
PROBE = Kind("needed-scale", NeededScaleOptions, NeededScaleRow, __name__, place=25, returns=BEST)
