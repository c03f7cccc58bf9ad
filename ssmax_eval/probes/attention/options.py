"""What the attention probe can be asked."""

from dataclasses import dataclass
from typing import Annotated

from ..needle.options import GridOptions
from ..options import Told


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(GridOptions):
    """Attention of every head on the needle, over a grid of context lengths and depths; the needle's verdicts with it."""

    restore: Annotated[
        bool,
        Told("Also read the answers' rows again, with the attention of short prompts given back or that of long ones."),
    ] = False
