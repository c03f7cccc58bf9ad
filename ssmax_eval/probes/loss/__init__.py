"""The probe `loss`: loss by position, and what the far context is worth."""

from ..kind import Kind
from .options import LossOptions
from .rows import LossRow

PROBE = Kind("loss", LossOptions, LossRow, __name__, place=30)
