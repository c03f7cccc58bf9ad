"""What `attention --restore` gives back: the axes along which attention can be lost, and what is done to all of them together."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Axis:
    """One thing that heads hold: mass on `span`, in the `rows` of the answer (which predict its tokens) or of the question.

    said: what the page calls it, behind "attention".
    """

    name: str
    span: str
    rows: Literal["answer", "question"]
    said: str


AXES = (
    Axis("value", "value", "answer", "on the answer in the text"),
    Axis("next", "next", "answer", "on the one token to write next"),
    Axis("sentence", "sentence", "answer", "on the rest of the needle's sentence"),
    Axis("place", "tail", "answer", "on the question and the answer so far"),
    Axis("question", "tail", "question", "the same, while the question is read"),
)
NOTHING, TAIL, TOGETHER, HAYSTACK, ALL = "nothing", "tail", "together", "haystack", "all"
# axes that are also given back at once; those of the tail tell nothing of where the needle stands
JOINED = {TAIL: [axis for axis in AXES if axis.span == "tail"], TOGETHER: [*AXES]}
OTHERS = "/others"  # behind an axis: as many heads that were not chosen
SAID = {
    **{axis.name: axis.said for axis in AXES},
    TAIL: "both of these (not on the needle)",
    TOGETHER: "all of the above together",
    HAYSTACK: "haystack read with queries × ln n/ln L",
    ALL: "all of the above, and haystack so read",
    NOTHING: "nothing (control: read again as it is)",
}
