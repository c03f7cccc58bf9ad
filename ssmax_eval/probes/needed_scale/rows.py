"""The columns of a row of the needed scale: a needle's row, and the same answer under other factors."""

from typing import Annotated, ClassVar

from msgspec import Meta

from ..needle.rows import NeedleRow

SCALED = (
    "what is multiplied: `all` heads in the rows of question and answer, `layer-N` or `heads` alone; `random-heads`, "
    "`whole-prompt`: controls. Which heads, as LAYER.HEAD; null for all"
)
READ = (
    "factors C on the queries, ascending; the answer's nll under each, nats; whether all its tokens are right there. "
    "Null where logits are not finite"
)


class NeededScaleRow(NeedleRow, kw_only=True, forbid_unknown_fields=True):
    """The verdict and nll of a needle's row are those of the model as it is, without a factor."""

    told_by: ClassVar[str] = "scaled"
    details: ClassVar[frozenset[str]] = NeedleRow.details | {"scaled_heads"}

    scaled: Annotated[str, Meta(description=SCALED)]
    scaled_heads: Annotated[list[str] | None, Meta(description=SCALED)] = None
    factors: Annotated[list[float] | None, Meta(description=READ)] = None
    nlls: Annotated[list[float | None] | None, Meta(description=READ)] = None
    verdicts: Annotated[list[bool | None] | None, Meta(description=READ)] = None

    def __post_init__(self) -> None:
        """Raise ValueError for lists of other lengths, and for a score without them."""
        super().__post_init__()
        lists = [self.factors, self.nlls, self.verdicts]
        if any((each is None) != (self.correct is None) for each in lists):
            raise ValueError("factors, nlls and verdicts are there exactly where the row has a score")
        if len({len(each) for each in lists if each is not None}) > 1:
            raise ValueError("factors, nlls and verdicts are not of one length")
