"""The probe `attention`: attention of every head on the needle, and the needle's verdicts."""

from ..kind import Kind
from ..needle.options import GridShown
from .options import AttentionOptions
from .rows import AttentionRow

HEADS = "a line for each prompt, layer and head (statistics.heads)"
PROBE = Kind("attention", AttentionOptions, AttentionRow, __name__, GridShown, place=20, returns=HEADS)
