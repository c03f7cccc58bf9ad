"""Key tokens: those that a model predicts well with the far context and not with the near context alone.

After LongPPL (Fang et al., arXiv 2410.23771, equations 2 to 5): token t of a document is key if nll_short(t) - nll_full(t) > 2 and
nll_full(t) < 2, in nats; their long-short difference LSD > alpha = 2 and long-context likelihood LCL > beta = -2.

nll_full is given all tokens in front of t. nll_short is given K - S to K - 1 of them, S = K / 4 (the paper's 4,096 and 1,024): from
token K on the document is cut into stretches of S tokens, and of each a window of K tokens that ends with it is read, what the
tokenizer puts in front of every text at its head. The paper's own code gives K to K + S - 1 tokens. Here no window is longer than
K, which may be the length that a model was trained at. Tokens with fewer than K in front are never key.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data.documents import Window
from ...errors import UserError
from ...launch import launched
from ...models.load import load_tokenizer
from ...models.subjects import RunOptions, Subject, subjects
from ...readers.opening import gives_of, open_reader
from ...readers.parts import unlike_in_parts
from ...readers.reader import NLL, Reader, Unread
from ...rows import Fields
from ...setting import Setting
from ..by_model import default_key_context
from ..checks import check_model, require
from .options import AUTO, LossOptions

LEAST_GAIN, MOST_LOSS = 2.0, 2.0  # nats: alpha, and -beta
STRETCHES = 4  # of a window
ITSELF = "itself"


def stretches(length: int, context: int) -> list[tuple[int, int]]:
    """Return the stretches [start, end) of a document's tokens whose near context ends where they do."""
    size = max(1, context // STRETCHES)
    return [(start, min(start + size, length)) for start in range(context, length, size)]


def short_nll(reader: Reader, window: Window, context: int, chunk: int | None = None) -> Tensor:
    """Return the nll (length - context,) of a document's tokens from `context` on, each given the near context alone.

    chunk: tokens to read at a time; None for as many as the document has.
    """
    ids, prefix, length = torch.tensor(window.ids), window.prefix, len(window.ids)
    places = stretches(length, context)
    near = torch.stack([torch.cat([ids[:prefix], ids[end - context + prefix : end]]) for _, end in places])
    parts = near.split(max(1, (chunk or length) // context))
    nll = torch.cat([reader.nll(part, chunk) for part in parts])
    return torch.cat([row[start - end :] for row, (start, end) in zip(nll, places, strict=True)])


def key_tokens(full: Tensor, short: Tensor) -> Tensor:
    """Tell which tokens are key, bool (tokens,), from their nll with all and with near context. Raises Unread for what is not finite."""
    if not (torch.isfinite(full).all() and torch.isfinite(short).all()):
        raise Unread("nll is not finite")
    return (short - full > LEAST_GAIN) & (full < MOST_LOSS)


@dataclass(frozen=True, eq=False)
class Judge:
    """A model that says which tokens are key, whatever model is measured on them: as trained, each document once.

    reference: as --model takes it. options: how it is loaded. Raises UserError for what is no model, or has code of its own,
    which a run could not tell.
    """

    reference: str
    options: RunOptions = field(default_factory=RunOptions)

    @cached_property
    def subject(self) -> Subject:
        found = subjects([self.reference], None)[0]
        if found.not_resumable is not None:
            raise UserError(
                f"key model {self.reference!r}: {found.not_resumable}; a run cannot tell what judged; take another"
            )
        gives, why = gives_of(found)
        if NLL not in gives:
            raise UserError(f"key model {self.reference!r}: {why}; take a causal model")
        return found

    def told(self) -> dict[str, Any]:
        """Return what a run tells of its judge."""
        source = self.subject.source
        dtype = None if source is None else source.dtype(self.options.dtype)
        return {
            "key_model": self.subject.label,
            "key_model_fingerprint": self.subject.fingerprint,
            "key_model_dtype": dtype,
        }

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, without its weights."""
        source = self.subject.source
        return self.reader.tokenizer if source is None else load_tokenizer(source, self.options.trust_remote_code)

    @cached_property
    def reader(self) -> Reader:
        """What reads it; the model is loaded when a document is first judged."""
        options = self.options
        if options.device_map is None:
            options = replace(options, device=launched().device(options.device))
        return open_reader(self.subject, options)

    @cached_property
    def known(self) -> dict[tuple[str, int], Tensor]:
        """What was judged, by the hash of the document and the near context."""
        return {}

    def key_tokens(self, window: Window, context: int, chunk: int | None = None) -> Tensor:
        """Tell which tokens of a document from `context` on are key. Raises Unread, and UserError for a model that cannot be read."""
        key = window.sha256, context
        if key not in self.known:
            reader, length = self.reader, len(window.ids)
            with Setting()(reader.model, length) as effective:
                if not self.known:
                    check_model(reader.model, reader.tokenizer, length, length, None)
                    reader.prove(length, frozenset({NLL}), effective.has_mechanism)
                if chunk is not None and reader.model is not None and unlike_in_parts(reader.model, chunk, length):
                    chunk = None
                full = reader.nll(torch.tensor([window.ids]), chunk)[0, context - 1 :]
                self.known[key] = key_tokens(full, short_nll(reader, window, context, chunk))
        return self.known[key]

    def leave(self) -> None:
        """Let go of the model; what it judged stays."""
        vars(self).pop("reader", None)


def judging(models: Any, options: LossOptions) -> tuple[int | None, Judge | None]:
    """Return the near context and the judge that options ask for; None: no key tokens, each by itself. Raises UserError."""
    context, judge = options.key_context, None
    if options.key_model is not None:
        how = RunOptions(options.dtype, options.device, options.device_map, trust_remote_code=options.trust_remote_code)
        judge = Judge(options.key_model, how)
        context = AUTO if context is None else context
    if isinstance(context, str):
        require(context == AUTO, "key context", context, "auto and whole numbers")
        context = default_key_context(models if judge is None else [judge.reference])
    return context, judge


def check_judging(prefix: int, same_tokens: bool, context: int, judge: Judge | None) -> None:
    """Raise UserError for a judge that makes other tokens of the documents, and for a window that a tokenizer's prefix fills."""
    if judge is not None and not same_tokens:
        raise UserError(
            f"key model {judge.reference!r}: its tokenizer makes other tokens of these documents; "
            "take a judge with the tokenizer of the models"
        )
    if context < prefix + 2:
        raise UserError(f"key context {context}: this tokenizer puts {prefix} tokens in front of every text; give more")


def judged(reader: Reader, window: Window, nll: Tensor, context: int, judge: Judge | None, chunk: int | None) -> Tensor:
    """Tell which tokens of a document from `context` on are key, bool (tokens,): for the judge, or for the model whose nll this is."""
    if judge is not None:
        return judge.key_tokens(window, context, chunk)
    return key_tokens(nll[context - 1 :], short_nll(reader, window, context, chunk))


def key_row(nll: Tensor | None, key: Tensor | None, context: int, length: int, judge: Judge | None) -> Fields:
    """Return what the row of a document's key tokens tells. nll: of all its tokens but the first; None for one that was not read."""
    who = None if judge is None else judge.subject
    row: Fields = {"measure": "key", "position_start": context, "position_end": length, "tokens": 0, "nll_sum": None}
    row |= {"nll_sum_near": None, "key_context": context, "key_judge": who.label if who else ITSELF}
    row |= {"key_judge_fingerprint": who.fingerprint if who else None, "key_sha256": None}
    if nll is not None and key is not None:
        row |= {"tokens": int(key.sum()), "nll_sum": float(nll[context - 1 :][key].double().sum())}
        row["key_sha256"] = hashlib.sha256(bytes(key.tolist())).hexdigest()
    return row
