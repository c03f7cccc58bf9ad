"""What the attention probe can be asked."""

from dataclasses import dataclass

from ..needle.options import GridOptions


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(GridOptions):
    """Attention of every head on the needle, over a grid of context lengths and depths; the needle's verdicts with it."""
