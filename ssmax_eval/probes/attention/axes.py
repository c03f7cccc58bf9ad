"""What `attention --restore` gives back: the axes along which attention can be lost, and what is done to all of them together."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Axis:
    """One thing that heads hold: mass on `span`, in the `rows` of the answer (which predict its tokens) or of the question.

    said: how the page calls it.
    """

    name: str
    span: str
    rows: Literal["answer", "question"]
    said: str


AXES = (
    Axis("value", "value", "answer", "mass on the value"),
    Axis("next", "next", "answer", "weight on the token to write next"),
    Axis("sentence", "sentence", "answer", "mass on the rest of the needle's sentence"),
    Axis("place", "tail", "answer", "place: mass on the question and what is written so far"),
    Axis("question", "tail", "question", "the same in the question's rows"),
)
NOTHING, TAIL, TOGETHER, HAYSTACK, ALL = "nothing", "tail", "together", "haystack", "all"
# axes that are also given back at once; those of the tail tell nothing of where the needle stands
JOINED = {TAIL: [axis for axis in AXES if axis.span == "tail"], TOGETHER: [*AXES]}
OTHERS = "/others"  # behind an axis: as many heads that were not chosen
SAID = {
    **{axis.name: axis.said for axis in AXES},
    TAIL: "place, in both: nothing of the needle",
    TOGETHER: "all of these together",
    HAYSTACK: "the haystack's rows, queries times ln n / ln L",
    ALL: "all of these, and the haystack's rows",
    NOTHING: "nothing: the rows read again as they are",
}
