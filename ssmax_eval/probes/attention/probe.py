"""The attention probe: the needle probe's prompts, and what every head does in the answers' rows, from the same forward."""

from ..needle.probe import make
from . import PROBE

PROBE.maker(make)
