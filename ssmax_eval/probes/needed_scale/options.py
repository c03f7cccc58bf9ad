"""What the needed scale can be asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ..needle.options import GridOptions
from ..options import Told, names, numbers


def every_or_numbers(what: str, text: str) -> str | tuple[int, ...]:
    """Read all, or whole numbers separated by commas."""
    return text if text == "all" else numbers(int)(what, text)


@dataclass(frozen=True, kw_only=True)
class NeededScaleOptions(GridOptions):
    """The factor on the scores of question and answer under which the answer is most likely, by context length."""

    layers: Annotated[
        str | Sequence[int],
        Told("Also scale each of these layers alone; all: every layer.", "N,...|all", every_or_numbers),
    ] = ()
    heads: Annotated[Sequence[str], Told("Also scale these heads alone, together.", "LAYER.HEAD,...", names)] = ()
    scale_random_heads: Annotated[
        bool, Told("Control: also scale as many drawn heads as --heads, of the others; half of all heads without it.")
    ] = False
    scale_whole_prompt: Annotated[
        bool, Told("Control: also scale all rows of the prompt; each factor reads it anew.")
    ] = False
