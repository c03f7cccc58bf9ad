"""The columns of a needle prompt's row that also tells what every head does."""

from typing import Annotated, ClassVar

from msgspec import Meta

from ...rows import Number
from ..needle.rows import NeedleRow

Measure = list[list[float | None]] | None  # layers of heads
MASS = "attention summed over the value's tokens, over its sentence, on the first token, on all after the haystack"
MEANS = "means over the answer's rows: of the mass on the value; of the weight on the one token to be written"
SHAPE = "nats, of the row's shares (none where weights can be negative); the largest weight and the position it is at"
TOP = "a list of answer tokens: the most that any head has on the value, and on the token to be written"
RESTORED = "by what is given back (`/others`: to as many other heads): is the answer right; its nll"
TAKEN = "the same where it is taken away, of prompts of the training length that are right"
LAYERED = (
    *("mass_answer", "mass_needle", "mass_first", "mass_question", "log_odds", "mass_answer_mean", "mass_next"),
    *("entropy", "maximum", "maximum_at", "row_sum"),
)


class AttentionRow(NeedleRow, kw_only=True, forbid_unknown_fields=True):
    """Lists are layers of heads, from the row that predicts the answer's first token unless said otherwise."""

    # the causes of failure rest on the ranks
    details: ClassVar[frozenset[str]] = NeedleRow.details - {"answer_ranks"} | {
        *("mass_first", "mass_question", "mass_answer_mean", "entropy", "maximum", "maximum_at", "row_sum"),
        "top_mass_next",
    }

    mass_answer: Annotated[Measure, Meta(description=MASS)] = None
    mass_needle: Annotated[Measure, Meta(description=MASS)] = None
    mass_first: Annotated[Measure, Meta(description=MASS)] = None
    mass_question: Annotated[Measure, Meta(description=MASS)] = None
    log_odds: Annotated[
        Measure,
        Meta(
            description="ln(mass_answer / mass elsewhere), exact where the mass rounds to 0 or 1; none where weights can "
            "be negative"
        ),
    ] = None
    mass_answer_mean: Annotated[Measure, Meta(description=MEANS)] = None
    mass_next: Annotated[Measure, Meta(description=MEANS)] = None
    entropy: Annotated[Measure, Meta(description=SHAPE)] = None
    maximum: Annotated[Measure, Meta(description=SHAPE)] = None
    maximum_at: Annotated[list[list[int | None]] | None, Meta(description=SHAPE)] = None
    row_sum: Annotated[Measure, Meta(description="of all weights of the row; empty where it is 1 by definition")] = None
    layers: Annotated[
        list[int] | None,
        Meta(
            description="the index in the model of each layer that attends, in the order of the lists of layers below"
        ),
    ] = None
    visible_keys: Annotated[list[int] | None, Meta(description="a list of layers: n")] = None
    top_mass_answer: Annotated[list[float | None] | None, Meta(description=TOP)] = None
    top_mass_next: Annotated[list[float | None] | None, Meta(description=TOP)] = None
    haystack_nll: Annotated[
        Number, Meta(description="mean nll in nats of the last 128 haystack tokens in front of the question")
    ] = None
    restored: Annotated[dict[str, bool | None] | None, Meta(description=RESTORED)] = None
    restored_nll: Annotated[dict[str, float | None] | None, Meta(description=RESTORED)] = None
    taken: Annotated[dict[str, bool | None] | None, Meta(description=TAKEN)] = None
    taken_nll: Annotated[dict[str, float | None] | None, Meta(description=TAKEN)] = None
    restored_length: Annotated[
        int | None, Meta(description="the length in tokens whose attention is given back, on prompts of their own")
    ] = None
    restored_heads: Annotated[
        dict[str, list[list[float]]] | None,
        Meta(
            description="by axis: layer, head, its mean mass at that length and at the longest, on prompts of their own"
        ),
    ] = None

    def __post_init__(self) -> None:
        """Raise ValueError for lists that are not of the same layers and heads."""
        super().__post_init__()
        shapes = {
            name: [len(heads) for heads in value] for name in LAYERED if (value := getattr(self, name)) is not None
        }
        if len({tuple(shape) for shape in shapes.values()}) > 1:
            one, other = next((a, b) for a in shapes for b in shapes if shapes[a] != shapes[b])
            raise ValueError(f"{one} and {other} are not of the same layers and heads")
        for name in ("layers", "visible_keys"):
            told = getattr(self, name)
            if told is not None and shapes and len(told) != len(next(iter(shapes.values()))):
                raise ValueError(f"{name} has {len(told)} layers, {next(iter(shapes))} has others")
