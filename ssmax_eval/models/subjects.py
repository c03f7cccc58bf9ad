"""What is probed: models by reference or loaded, how they are loaded, and what identifies their weights and code."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.interface import native_mechanism
from ..mechanisms.spelling import Attention
from .identity import Identity, identify, identify_source, mechanism_asked
from .load import load_model
from .sources import ModelSource, resolve

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class RunOptions:
    """How to run: dtype, device and device_map as load_model takes them; batch_size None chooses; fresh starts every run over."""

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | dict[str, Any] | None = None
    batch_size: int | None = None
    output_path: Path = Path("results")
    fresh: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size}: allowed are auto and whole numbers from 1")


@dataclass(frozen=True)
class Subject:
    """A model to probe: where it comes from (or the loaded pair itself), and what identifies its weights.

    not_resumable: why its runs start over each time and are never served from stored rows; None if they may be.
    """

    label: str
    reference: str
    fingerprint: str
    native_attention: str
    source: ModelSource | None = None
    loaded: Loaded | None = None
    not_resumable: str | None = None

    @property
    def resumable(self) -> bool:
        return self.not_resumable is None

    @property
    def mechanism(self) -> Attention | None:
        """The mechanism that the model carries, None for none, and for one that is not known."""
        config = self.loaded[0].config.to_dict() if self.loaded else self.source.config() if self.source else {}
        entry = config.get("ssmax")
        with suppress(UserError):
            return Attention.of(str(entry["attention"])) if isinstance(entry, dict) and "attention" in entry else None
        return None

    @property
    def bias(self) -> str | None:
        """The name of the position bias that the model carries, None for none."""
        config = self.loaded[0].config.to_dict() if self.loaded else self.source.config() if self.source else {}
        entry = config.get("ssmax")
        return entry.get("position") if isinstance(entry, dict) and isinstance(entry.get("position"), str) else None

    def load(self, options: RunOptions) -> Loaded:
        if self.loaded is not None:
            return self.loaded
        assert self.source is not None
        return load_model(
            self.source,
            dtype=options.dtype,
            device=options.device,
            device_map=options.device_map,
            trust_remote_code=options.trust_remote_code,
        )


def subjects(models: str | Sequence[Any] | dict[str, Any] | Loaded) -> list[Subject]:
    """Return the subjects of references (`[LABEL=]REF`), of {label: reference or (model, tokenizer)}, or of one loaded pair."""
    if isinstance(models, str) or (isinstance(models, tuple) and models and hasattr(models[0], "config")):
        models = [models]
    items: list[tuple[str, Any]] = list(models.items()) if isinstance(models, dict) else [("", each) for each in models]
    if not items:
        raise UserError(f"models {models!r}: none; give at least one reference, for example softmax-bible-2m")
    found = [subject(label, reference) for label, reference in items]
    labels = [each.label for each in found]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"model {label!r}: two models have this name; tell them apart: --model LABEL=REF")
    return found


def subject(label: str, reference: Any) -> Subject:
    if isinstance(reference, str):
        source = resolve(f"{label}={reference}" if label else reference)
        entry = source.config().get("ssmax")
        native = entry.get("attention", "softmax") if isinstance(entry, dict) else mechanism_asked(source.config())
        identity = identify_source(source)
        reason = told(source.label, identity)
        return Subject(
            source.label, source.reference, identity.fingerprint, native, source=source, not_resumable=reason
        )
    model, tokenizer = reference
    name = type(model).__name__
    native = native_mechanism(model)
    if hasattr(model.config, "ssmax") and native != "softmax" and not mechanisms_of(model):
        raise UserError(
            f"model {label or name!r}: its config names attention {native}, but its layers carry none; "
            "load it with ssmax_eval.load_model"
        )
    identity = identify(model, tokenizer)
    reason = told(label or name, identity)
    return Subject(label or name, name, identity.fingerprint, native, loaded=reference, not_resumable=reason)


def told(label: str, identity: Identity) -> str | None:
    """Say why a model's runs are not resumed, and return the reason; None if they are."""
    if identity.unknown_code is None:
        return None
    reason = f"code that is not transformers' decides its numbers: {identity.unknown_code}"
    logging.getLogger(__name__).warning(
        "ssmax-eval: note: model %r: its runs start over, stored rows are not used: %s", label, reason
    )
    return reason
