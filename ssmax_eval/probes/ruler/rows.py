"""The columns of a row of RULER."""

from typing import Annotated, ClassVar

from msgspec import Meta

from ...rows import Number, Row, Text
from ..needle.rows import At, Share

ASKED = "lm-eval's name of the task; the prose that stands for RULER's essays, where a task has any; how it is scored"
DRAWN = (
    "the prompt's number in its task and length; where its prose begins in a real text, and how many sentences it has"
)
TEXTS = "the question with the words that the answer follows; what the answer has to hold; what was written"
FOUND = (
    "the share of the references that are in what was written (string_match_all), 0 to 1; all are. Null without a score"
)


class RulerRow(Row, kw_only=True, forbid_unknown_fields=True):
    """One prompt of RULER and what the model wrote."""

    told_by: ClassVar[str] = "prompt_tokens"
    score: ClassVar[str | None] = "correct"
    details: ClassVar[frozenset[str]] = frozenset({"question", "references", "predicted"})

    task: Annotated[str, Meta(description=ASKED)]
    haystack: Annotated[str, Meta(description=ASKED)]
    scoring: Annotated[str, Meta(description=ASKED)]
    trial: Annotated[int, Meta(description=DRAWN)]
    haystack_start: Annotated[At | None, Meta(description=DRAWN)] = None
    haystack_sentences: Annotated[At, Meta(description=DRAWN)] = 0
    prompt_tokens: Annotated[int, Meta(description="tokens of the prompt; the rest of the context length is to write")]
    chat: Annotated[Text, Meta(description="as a needle's row has it")] = None
    question: Annotated[str, Meta(description=TEXTS)]
    references: Annotated[list[str], Meta(description=TEXTS)]
    predicted: Annotated[Text, Meta(description=TEXTS)] = None
    credit: Annotated[Share | None, Meta(description=FOUND)] = None
    correct: Annotated[bool | None, Meta(description=FOUND)] = None
    settled: Annotated[
        bool | None,
        Meta(description="one forward over the answer showed that greedy decoding writes it, so nothing was written"),
    ] = None
    answer_nll: Annotated[
        Number, Meta(description="nats, summed over the answer as the prompt has it written; null where none was read")
    ] = None
    prompt_sha256: Annotated[str, Meta(description="of the prompt's ids, its answer's included")]
