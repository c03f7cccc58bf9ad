"""The columns of a needle prompt's row."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from ...rows import Fields, Number, Row, Text

if TYPE_CHECKING:
    from ...data.prompts import Prompt

ASKED = "what was asked, and how it is scored"
PLACED = "where the needle should stand (0 = start) and does; the prompt's number in its cell"
TEXTS = "texts; predicted is each row's argmax given the true tokens before it"
TOKENS = "the same, token by token"
RIGHT = "every token right; the first one right. Null without a score"
RANKS = "each answer token's rank (0 = the argmax); the smallest lead of an answer token over its best rival, in logits"
SPANS = "positions in tokens, [start, end)"
DRAWN = (
    "the sentence of a real text that the haystack begins with (null where text is made for each prompt), and how many "
    "it has"
)
Percent = Annotated[float, Meta(ge=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
At = Annotated[int, Meta(ge=0)]
Depth = Annotated[Percent | None, Meta(description=PLACED)]
Position = Annotated[At | None, Meta(description=SPANS)]


class NeedleRow(Row, kw_only=True, forbid_unknown_fields=True):
    """One prompt, the model's answer to it, and where its parts stand."""

    told_by: ClassVar[str] = "prompt_sha256"
    score: ClassVar[str | None] = "correct"
    before: ClassVar[frozenset[str]] = frozenset({"haystack_block"})
    details: ClassVar[frozenset[str]] = frozenset(
        "needle question expected predicted expected_tokens predicted_tokens answer_ranks margin needle_start needle_end "
        "value_start value_end question_start".split()
    )

    task: Annotated[str, Meta(description=ASKED)]
    value: Annotated[str, Meta(description=ASKED)]
    needles: Annotated[int, Meta(description=ASKED)]
    haystack: Annotated[str, Meta(description=ASKED)]
    scoring: Annotated[Text, Meta(description=ASKED)] = None
    control: Annotated[Text, Meta(description="null in the grid; `no-needle`, `needle-only`")]
    depth_percent: Depth
    realised_depth_percent: Annotated[Number, Meta(description=PLACED)]
    trial: Annotated[int, Meta(description=PLACED)]
    plan: Annotated[
        int | None,
        Meta(
            description="2: rows of one `seed` and `trial` share one haystack; 1, or no such column: each has its own"
        ),
    ] = None
    needle: Annotated[str, Meta(description=TEXTS)]
    question: Annotated[str, Meta(description=TEXTS)]
    expected: Annotated[str, Meta(description=TEXTS)]
    predicted: Annotated[Text, Meta(description=TEXTS)] = None
    expected_tokens: Annotated[list[str] | None, Meta(description=TOKENS)] = None
    predicted_tokens: Annotated[list[str] | None, Meta(description=TOKENS)] = None
    correct: Annotated[bool | None, Meta(description=RIGHT)] = None
    first_correct: Annotated[bool | None, Meta(description=RIGHT)] = None
    credit: Annotated[
        Share | None,
        Meta(description="the share of the asked values that are right, 0 to 1: partial answers. Null without a score"),
    ] = None
    cut: Annotated[
        bool | None,
        Meta(
            description="whether what was written ended at the most tokens that it may have; with contains and f1 alone"
        ),
    ] = None
    answer_nll: Annotated[Number, Meta(description="nats, summed over the answer")] = None
    answer_ranks: Annotated[list[int] | None, Meta(description=RANKS)] = None
    margin: Annotated[Number, Meta(description=RANKS)] = None
    needle_start: Position = None
    needle_end: Position = None
    value_start: Position = None
    value_end: Position = None
    question_start: Position = None
    haystack_start: Annotated[int | None, Meta(description=DRAWN)] = None
    haystack_sentences: Annotated[int | None, Meta(description=DRAWN)] = None
    chat: Annotated[
        Text,
        Meta(
            description="the chat template and a hash of what it puts around the prompt; null where it is read without"
        ),
    ] = None
    prompt_sha256: Annotated[str, Meta(description="of the prompt's ids: equal prompts can be paired")]


def placed(prompt: "Prompt") -> Fields:
    """Return a row's columns of where a prompt's parts stand, and what names it."""
    names = (
        "needle_start needle_end value_start value_end question_start haystack_start haystack_sentences chat".split()
    )
    return {name: getattr(prompt, name) for name in names} | {"prompt_sha256": prompt.sha256}
