"""The columns of a row of the loss: one bin of positions, or one length of a document."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from ...rows import Number, Row, Text

READ = "what was read"
BIN = "the bin, [start, end), in tokens in front; how many are scored"
KEY = (
    "of key tokens alone: the near context in tokens; who said which are key (`itself`: the model), the hash of its weights; "
    "a hash of which they are"
)
NEAR = "the near context in tokens; nats over the same tokens read with nothing before the window"


class LossRow(Row, kw_only=True, forbid_unknown_fields=True):
    """One sum of nats over some tokens of a document."""

    told_by: ClassVar[str] = "measure"
    score: ClassVar[str | None] = "nll_sum"

    document: Annotated[str, Meta(description=READ)]
    document_sha256: Annotated[str, Meta(description=READ)]
    text: Annotated[str, Meta(description=READ)]
    text_sha256: Annotated[str, Meta(description=READ)]
    measure: Annotated[
        Literal["position", "gain", "key"],
        Meta(
            description="`position`: a bin of positions; `gain`: the last `window` tokens of a length; `key`: the key tokens of the bin"
        ),
    ]
    position_start: Annotated[int, Meta(description=BIN, ge=0)]
    position_end: Annotated[int, Meta(description=BIN, ge=0)]
    tokens: Annotated[int, Meta(description=BIN, ge=0)]
    nll_sum: Annotated[Number, Meta(description="nats over those tokens")]
    window: Annotated[int, Meta(description=NEAR)]
    nll_sum_near: Annotated[Number, Meta(description=NEAR)]
    key_context: Annotated[int | None, Meta(description=KEY)] = None
    key_judge: Annotated[Text, Meta(description=KEY)] = None
    key_judge_fingerprint: Annotated[Text, Meta(description=KEY)] = None
    key_sha256: Annotated[Text, Meta(description=KEY)] = None
