"""What is probed: models by reference or loaded, how they are loaded, and what identifies their weights and code."""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.nn import DataParallel, Module
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, reading
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.implementation import native_mechanism
from ..mechanisms.spelling import Attention
from .causal import refuse_without_words
from .foreign import Endpoint, Foreign, fingerprint_of, foreign_named, function
from .identity import Identity, identify, identify_source, mechanism_asked
from .load import load_model
from .sources import ModelSource, is_foreign, resolve, shown

ASKED_OF_A_MODEL = ("config", "dtype", "get_decoder", "get_input_embeddings")
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class RunOptions:
    """How to run: dtype, device and device_map as load_model takes them; batch_size None chooses; fresh starts every run over.

    tokenizer: whose prompts of foreign models are counted with (foreign.py). reaches: tokens of the longest prompt of a study of
    several runs, for all of which a mechanism stands on the same layers: windows that hold every prompt are none. study: which
    one that is, where it chooses prompts by what it found, so that they are no grid.
    """

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | dict[str, Any] | None = None
    batch_size: int | None = None
    output_path: Path = Path("results")
    fresh: bool = False
    trust_remote_code: bool = False
    tokenizer: str | None = None
    reaches: int = 0
    study: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size}: allowed are auto and whole numbers from 1")


@dataclass(frozen=True)
class Subject:
    """A model to probe: where it comes from (or the loaded pair itself), and what identifies its weights.

    native_attention: None where it is not known. not_resumable: why its runs start over each time and are never served from
    stored rows; None if they may be. foreign: a function or an endpoint, which is no model of this process.
    """

    label: str
    reference: str
    fingerprint: str
    native_attention: str | None
    source: ModelSource | None = None
    loaded: Loaded | None = None
    not_resumable: str | None = None
    foreign: Foreign | None = None

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


def is_one(models: Any) -> bool:
    """Tell whether models are one: a reference, a loaded pair, or a function."""
    pair = (
        isinstance(models, tuple) and bool(models) and (isinstance(models[0], Module) or hasattr(models[0], "config"))
    )
    return isinstance(models, str) or pair or is_foreign(models)


def unwrapped(pair: Loaded) -> Loaded:
    """Return a loaded pair whose model is not in the wrapper of torch.compile, DataParallel or DistributedDataParallel.

    Raises UserError for what is no model of transformers, or one that does not tell the table of its words.
    """
    model, tokenizer = pair
    inner: Any = getattr(model, "_orig_mod", model)
    while isinstance(inner, DataParallel | DistributedDataParallel):
        inner = getattr(inner.module, "_orig_mod", inner.module)
    name = type(inner).__name__
    if lacking := [each for each in ASKED_OF_A_MODEL if not hasattr(inner, each)]:
        raise UserError(
            f"model {name}: a {name} is no model of transformers (it has no {lacking[0]}); give the model that it holds, or a "
            "function of context and question that returns text"
        )
    refuse_without_words(inner)
    return inner, tokenizer


def subjects(models: Any, tokenizer: str | None = None) -> list[Subject]:
    """Return the subjects of references (`[LABEL=]REF`), of {label: reference, function or (model, tokenizer)}, or of one of these.

    tokenizer: as RunOptions has it. Raises UserError.
    """
    models = [models] if is_one(models) else models
    items: list[tuple[str, Any]] = list(models.items()) if isinstance(models, dict) else [("", each) for each in models]
    if not items:
        raise UserError(f"models {models!r}: none; give at least one reference, for example softmax-bible-2m")
    if tokenizer is not None and not any(is_foreign(reference) for _, reference in items):
        raise UserError(
            f"tokenizer {tokenizer!r}: these models bring their own; it is for functions and servers, leave it out"
        )
    found = [
        foreign_subject(label, each, tokenizer) if is_foreign(each) else subject(label, each) for label, each in items
    ]
    labels = [each.label for each in found]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"model {label!r}: two models have this name; tell them apart: --model LABEL=REF")
    return found


def subject(label: str, reference: Any) -> Subject:
    if isinstance(reference, str):
        source = resolve(reference)
        source = replace(source, label=shown(label)) if label else source
        with reading(f"model {source.reference!r}"):
            entry = source.config().get("ssmax")
            native = entry.get("attention", "softmax") if isinstance(entry, dict) else mechanism_asked(source.config())
            identity = identify_source(source)
        reason = told(source.label, identity)
        return Subject(
            source.label, source.reference, identity.fingerprint, native, source=source, not_resumable=reason
        )
    model, tokenizer = reference = unwrapped(reference)
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


def foreign_subject(label: str, reference: Any, tokenizer: str | None) -> Subject:
    """Return the subject of a function or of a server's model. Raises UserError."""
    if isinstance(reference, str):
        given, foreign = foreign_named(reference, tokenizer)
    else:
        given = getattr(reference, "__name__", type(reference).__name__)
        foreign = function(reference, given, tokenizer)
    label = label or given
    if isinstance(foreign, Endpoint):
        return Subject(label, f"{foreign.url}#{foreign.name}", fingerprint_of(foreign), None, foreign=foreign)
    reason = starts_over(label, "it is no function of a file as it stands there now") if foreign.file is None else None
    return Subject(label, foreign.name, fingerprint_of(foreign), None, not_resumable=reason, foreign=foreign)


def told(label: str, identity: Identity) -> str | None:
    """Say why a model's runs are not resumed, and return the reason; None if they are."""
    if identity.unknown_code is None:
        return None
    return starts_over(label, f"code that is not transformers' decides its numbers: {identity.unknown_code}")


def starts_over(label: str, reason: str) -> str:
    """Say that a model's runs start over, and return the reason."""
    logging.getLogger(__name__).warning(
        "ssmax-eval: note: model %r: its runs start over, stored rows are not used: %s", label, reason
    )
    return reason
