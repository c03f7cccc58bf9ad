"""The loss probe: nll by position far beyond the training length, and what the far context is worth, from one forward a document."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.documents import Documents, Window, windows_of
from ...data.unknown import document_text, lost_in_words, refuse_lost
from ...errors import UserError, is_out_of_memory
from ...models.encoders import is_encoder
from ...readers.parts import smaller_chunk
from ...readers.reader import NLL, Reader, Unread
from ...rows import Fields
from ..budget import within
from ..by_model import default_lengths, default_window
from ..checks import check_model, require
from ..defaults import DOCUMENTS, LONGEST, SEED, TEXT, UNKNOWN, WINDOW
from ..kind import Probe
from . import PROBE
from .key_tokens import ITSELF, Judge, check_judging, judged, judging, key_row, stretches
from .options import LossOptions
from .rows import LossRow

FORMAT = 2  # of documents and sums: raise it when the same parameters come to mean other rows
BINS_PER_OCTAVE = 2
MOST_DOCUMENTS = 100_000


class Scores(NamedTuple):
    """A document's nll (length - 1,), that of its windows read alone (lengths, window - 1), and why there is none.

    key: which of its tokens from the key context on are key, if that was asked.
    """

    nll: Tensor | None
    near: Tensor | None
    error: str | None = None
    key: Tensor | None = None


class Sample(NamedTuple):
    """One document of the plan."""

    document: int
    context_length: int

    @property
    def trial(self) -> int:
        """A document is to the loss what a trial is to a grid."""
        return self.document


@dataclass(frozen=True)
class LossProbe(Probe):
    """Parameters of the loss by position.

    context_length: tokens of each document. documents: how many. text: text (generated prose, its seed the document's),
    bible, hf:DATASET, a file or a directory, whose files are documents; pack joins files that are too short. window: tokens
    of near context that the context gain leaves. limit_tokens: at most so many tokens, whole documents dropped.
    key_context: tokens of near context without which a token is key (key_tokens.py); None does not ask. key_model: who judges
    that, for all models alike; None for each its own.
    chunk: tokens to prefill at a time; None is all at once, and smaller when memory runs out. Raises UserError for values out of range.
    """

    context_length: int = UNKNOWN[-1]
    documents: int = DOCUMENTS
    text: str = TEXT
    window: int = WINDOW
    pack: bool = False
    seed: int = SEED
    limit_tokens: int | None = None
    chunk: int | None = None
    key_context: int | None = None
    key_model: Judge | None = None

    def __post_init__(self) -> None:
        require(
            8 <= self.context_length <= LONGEST, "context length", self.context_length, f"whole numbers, 8 to {LONGEST}"
        )
        require(1 <= self.documents <= MOST_DOCUMENTS, "documents", self.documents, f"1 to {MOST_DOCUMENTS}")
        require(2 <= self.window <= LONGEST, "window", self.window, f"whole numbers of tokens, 2 to {LONGEST}")
        require(self.chunk is None or self.chunk >= 1, "chunk", self.chunk, "auto and whole numbers from 1")
        if self.key_context is not None:
            most = self.context_length - 1
            allowed = f"whole numbers of tokens, 2 to {most}: tokens beyond it can be key (--context-length)"
            require(2 <= self.key_context <= most, "key context", self.key_context, allowed)
        if self.limit_tokens is not None:
            self.plan()  # which says the least that a document takes

    name, schema, unit, sample_is, all_rows = "loss", LossRow, "documents", "document", True

    @cached_property
    def source(self) -> Documents:
        """The documents' source, read once."""
        return Documents(self.text, self.pack)

    def plan(self) -> list[Sample]:
        """Return the documents in the order they are read."""
        return within([Sample(i, self.context_length) for i in range(self.documents)], self.limit_tokens)

    def check(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError if the tokenizer is not the model's, positions run out, or the text is too short.

        Also for an encoder: no row of it is blind to the token that it would predict.
        """
        if model is not None and is_encoder(model):
            raise UserError(
                f"loss: not applicable to {type(model).__name__}, an encoder: it predicts no token from those before it; "
                "use the needle or the attention probe"
            )
        check_model(model, tokenizer, self.context_length, self.context_length, self.chunk)
        refuse_lost(tokenizer, document_text(self.source))
        windows = self.windows(tokenizer)
        if self.key_context is not None:
            theirs = windows if self.key_model is None else self.windows(self.key_model.tokenizer)
            check_judging(windows[0].prefix, theirs == windows, self.key_context, self.key_model)
        if not self.gain_lengths():
            logging.getLogger(__name__).warning(
                "ssmax-eval: note: no context gain: a window of %d tokens needs documents of twice that", self.window
            )

    def advice(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return lost_in_words(tokenizer, document_text(self.source))

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> list[Window]:
        """Return the documents in this tokenizer's ids."""
        return windows_of(self.source, tokenizer, self.context_length, len(self.plan()), self.seed)

    def parameters(self) -> dict[str, Any]:
        """Return all that decides the documents and what is summed, the texts' content included."""
        parameters = {each.name: getattr(self, each.name) for each in fields(self)}
        del parameters["chunk"], parameters["key_model"]  # how it is computed, not what; and told below
        if self.key_context is None:
            del parameters["key_context"]  # the runs of before stay
        else:
            parameters |= self.key_model.told() if self.key_model else {"key_model": ITSELF}
        if self.limit_tokens is None:  # a run of all its plan is the one that it was before there was a limit
            del parameters["limit_tokens"]
        parameters["pack"] = self.pack and bool(self.source.texts)  # prose has no files to join
        return {"format": FORMAT, **parameters, "text": self.source.name, "text_sha256": self.source.sha256}

    def tokens(self, rows: Sequence[Fields]) -> int:
        """Return the tokens that stored rows stand for."""
        return self.context_length * len({row["document_sha256"] for row in rows})

    def names(self, sample: Sample) -> list[str]:
        """Return the names of a document's rows."""
        return [f"{sample.document}/{part}" for part in self.parts()]

    def reads(self, sample: Sample) -> list[int]:
        """Return the tokens of each sequence that a document's rows take: itself, the window of each gain alone, those of key tokens.

        Another model's judging is not among them: it is done once for all models.
        """
        near = [self.window] * len(self.gain_lengths())
        if self.key_context is not None and self.key_model is None:
            near += [self.key_context] * len(stretches(self.context_length, self.key_context))
        return [sample.context_length, *near]

    needs = frozenset({NLL})

    def __call__(
        self,
        reader: Reader,
        done: Collection[str] = (),
        batch_size: int | None = None,
        claim: Callable[[], bool] = lambda: True,
    ) -> Iterator[list[Fields]]:
        """Yield the rows of each document, those whose rows are all named in `done` left out; claim as in the needle probe."""
        self.check(reader.model, reader.tokenizer)
        chunk = self.chunk
        for sample, window in zip(self.plan(), self.windows(reader.tokenizer), strict=True):
            if claim() and not all(name in done for name in self.names(sample)):
                # what one document did not fit into, the next will not either
                scores, chunk = self.score(reader, window, chunk)
                yield self.rows(sample, window, scores)
        if self.key_model is not None:
            self.key_model.leave()

    def bins(self) -> list[tuple[int, int]]:
        """Return the position bins [start, end), log-spaced; a position is the number of tokens in front of the predicted one."""
        octaves = range(BINS_PER_OCTAVE * self.context_length.bit_length() + 1)
        edges = {round(2 ** (k / BINS_PER_OCTAVE)) for k in octaves}
        inner = sorted(edge for edge in edges if edge < self.context_length)
        return [*zip(inner, [*inner[1:], self.context_length], strict=True)]

    def gain_lengths(self) -> list[int]:
        """Return the lengths at whose end the context gain is taken: the whole, half of it and so on, down to two windows."""
        lengths = [self.context_length >> k for k in range(self.context_length.bit_length())]
        return sorted(length for length in lengths if length >= 2 * self.window)

    def parts(self) -> list[str]:
        """Return the names of a document's rows."""
        key = [] if self.key_context is None else ["key"]
        return [*(f"{start}" for start, _ in self.bins()), *(f"gain/{length}" for length in self.gain_lengths()), *key]

    def rows(self, sample: Sample, window: Window, scores: Scores) -> list[Fields]:
        """Return a document's rows: one for each bin of positions, one for each length at which the context gain is taken."""
        common = {
            "document": window.name,
            "document_sha256": window.sha256,
            "text": self.source.name,
            "text_sha256": self.source.sha256 or "generated",
            "seed": self.seed,
            "context_length": self.context_length,
            "window": self.window,
        }
        nll, near, error, key = scores
        rows = []
        for start, end in self.bins():
            first = max(start, window.prefix)  # what stands in front of every text is no text
            part = None if nll is None else float(nll[first - 1 : max(first, end) - 1].double().sum())
            rows.append(
                {"sample": f"{sample.document}/{start}", **common, "measure": "position", "position_start": start}
                | {
                    "position_end": end,
                    "tokens": max(0, end - first),
                    "nll_sum": part,
                    "nll_sum_near": None,
                    "error": error,
                }
            )
        for i, length in enumerate(self.gain_lengths()):
            # the window's tokens but its first; the nll of token t is at t - 1
            scored = slice(length - self.window, length - 1)
            far = None if nll is None else float(nll[scored].double().sum())
            alone = None if near is None else float(near[i].double().sum())
            rows.append(
                {"sample": f"{sample.document}/gain/{length}", **common, "measure": "gain"}
                | {"position_start": length - self.window + 1, "position_end": length, "tokens": self.window - 1}
                | {"nll_sum": far, "nll_sum_near": alone, "error": error}
            )
        if self.key_context is not None:
            found = key_row(nll, key, self.key_context, self.context_length, self.key_model)
            rows.append({"sample": f"{sample.document}/key", **common, **found, "error": error})
        return rows

    def score(self, reader: Reader, window: Window, chunk: int | None) -> tuple[Scores, int | None]:
        """Return a document's scores, and the chunk that it was read in: smaller ones are tried when memory runs out."""
        ids = torch.tensor([window.ids])
        while True:
            try:
                nll, near = reader.nll(ids, chunk)[0], self.near(reader, ids, window.prefix)
                if not (torch.isfinite(nll).all() and torch.isfinite(near).all()):
                    return Scores(None, None, "nll is not finite"), chunk
                key = None
                if self.key_context is not None:
                    key = judged(reader, window, nll, self.key_context, self.key_model, chunk)
                return Scores(nll, near, key=key), chunk
            except Unread as error:
                return Scores(None, None, str(error)), chunk
            except RuntimeError as error:
                if reader.model is None or not is_out_of_memory(error):
                    raise
            # outside the handler, so that the failed forward's tensors are gone
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            assert reader.model is not None
            if (smaller := smaller_chunk(reader.model, chunk, self.context_length)) is None:
                return Scores(None, None, "out of memory"), chunk
            chunk = smaller

    def near(self, reader: Reader, ids: Tensor, prefix: int) -> Tensor:
        """Return the nll of the last window of each gain length, read with nothing but the tokenizer's prefix before it."""
        tails = [torch.cat([ids[0, :prefix], ids[0, end - self.window : end]]) for end in self.gain_lengths()]
        return reader.nll(torch.stack(tails))[:, prefix:] if tails else torch.zeros(0, self.window - 1)


def make(models: Any, options: LossOptions, beside: Sequence[Probe] = ()) -> LossProbe:
    """Return the loss probe that options ask for: as long as what the probes beside it read, or as the needle goes.

    Raises UserError.
    """
    length = options.context_length
    if length is None:
        beyond = [probe.longest() for probe in beside]
        length = max(beyond) if beyond else default_lengths(models, options.trust_remote_code)[-1]
    key_context, key_model = judging(models, options)
    return LossProbe(
        context_length=length,
        documents=options.documents,
        text=options.text,
        window=default_window(models) if options.window is None else options.window,
        pack=options.pack,
        seed=options.seed,
        limit_tokens=options.limit_tokens,
        chunk=options.chunk,
        key_context=key_context,
        key_model=key_model,
    )


PROBE.maker(make)
