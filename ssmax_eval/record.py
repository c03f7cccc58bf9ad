"""What run.json has to tell of a run; what else it tells is not read by the page."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # of tokens, rows, numbers in a model


class TrainingTold(Struct):
    """How ssmax-eval trained a model."""

    configuration: str | None = None
    key: str | None = None
    attention: str | None = None
    seed: int | None = None
    seconds: float | None = None
    signs: list[str] | None = None
    log: list[dict[str, Any]] | None = None


class TokenizerTold(Struct):
    """Whose tokenizer counted the prompts of a model that is not in the process that reads it."""

    reference: str


class ForeignTold(Struct):
    """What a record tells of a model that is not in the process that reads it."""

    kind: str
    tokenizer: TokenizerTold


class ModelTold(Struct):
    """What a record tells of the model."""

    label: str
    fingerprint: str
    # null where the model is not in the process that reads it
    architecture: str | None
    parameters: Count | None
    dtype: str | None
    train_length: Count | None = None
    training: TrainingTold | None = None
    foreign: ForeignTold | None = None


class AttentionTold(Struct):
    """What a record tells of the mechanism, layers by name."""

    attention: str | None
    swapped: bool = False
    scaled_layers: list[str] | None = None
    unscaled_layers: list[str] | None = None
    learned: dict[str, dict[str, Any]] | None = None


class EffectiveRope(Struct):
    """What RoPE came to."""

    requested: str
    rope_type: str
    effective_theta: float | None = None
    rope_theta: float | None = None


class RopeTold(Struct):
    """What a record tells of RoPE."""

    requested: dict[str, Any] | None = None
    effective: EffectiveRope | None = None
    position: str | None = None


class MachineTold(Struct):
    """What a record tells of the machine."""

    device: str


class Record(Struct):
    """What run.json has to tell; what else it tells is not read by the page."""

    parameters: dict[str, Any]
    model: ModelTold
    attention: AttentionTold
    rope: RopeTold
    environment: MachineTold
    rows: Count
    tokens: Count
    seconds: float
    probe: Annotated[str, Meta(pattern=r"^\w[\w.-]*$")] | None = None  # the name of a folder
    failed: Count = 0
    thresholds: dict[str, Any] | None = None
    command: str | None = None


def shared_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that all rows of a run have in common, as its record tells them."""
    model, attention, rope = record["model"], record["attention"], record["rope"]
    requested, effective = rope.get("requested") or {}, rope.get("effective") or {}
    return {
        "model": model["label"],
        "fingerprint": model["fingerprint"],
        "dtype": model["dtype"],
        "attention": attention["attention"],
        "attention_swapped": attention.get("swapped", False),
        "rope": rope.get("position") or effective.get("requested", "as trained"),
        "rope_theta": effective.get("rope_theta"),
        "rope_theta_factor": requested.get("theta_factor", 1.0),
        "rope_scaling": requested.get("scaling"),
        "seed": record["parameters"].get("seed"),
    }
