"""The last rows of prompts, read again and again over what comes before them, which is read once."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..errors import UserError
from ..mechanisms.edit import Edit
from ..mechanisms.interface import edited, recording
from ..mechanisms.recorder import Recorder
from .head import logits_of
from .parts import unlike_in_parts
from .prefill import copied_cache, prefill

PREFILL = 2**20  # tokens at a time, where nobody asks for fewer


class Again:
    """Prompts of equal length, of which all rows from `start` on can be read again, each time with other edits.

    ids (batch, length): tokens that the model is given. What comes before `start` is read once, under the model's setting, into
    a cache that every reading leaves as it was. A model whose numbers change in parts, or a mechanism that reads whole sequences
    only, reads all of it each time: `whole` says why, None where the cache serves. before: edits of what comes before `start`,
    by layer, which take a cache; of every reading's own rows they change nothing. cache: what comes before `start`, read already,
    as forked_proof proves it to be the same.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        start: int,
        chunk: int | None = None,
        before: Mapping[int, Edit] | None = None,
        cache: DynamicCache | None = None,
    ) -> None:
        self.model, self.ids, self.start = model, ids, start
        self.cache = cache
        self.whole: str | None = None
        length = ids.shape[1]
        self.rows = length - start
        if cache is not None:
            return
        self.whole = (
            unlike_in_parts(model, min(start, PREFILL) or 1, length) if start else "it starts at the first token"
        )
        if self.whole is None:
            with edited(model, before) if before else nullcontext():
                self.cache = prefill(model, ids, start, chunk or PREFILL, keep_all=True)
        elif before:
            raise UserError(f"{type(model).__name__}: what comes before some rows cannot be edited alone: {self.whole}")

    @torch.inference_mode()
    def logits(self, rows: int, edits: Mapping[int, Edit] | None = None, recorder: Recorder | None = None) -> Tensor:
        """Return the logits (batch, rows, vocabulary) of the last rows.

        edits: by layer; their `rows` count from the end. recorder: of rows that count from `start`.
        """
        ids, options = self.ids[:, self.start :], self.options()
        if self.cache is None:
            ids = self.ids
            if recorder is not None:
                recorder.rows = recorder.rows + self.start
        with (
            edited(self.model, edits) if edits else nullcontext(),
            recording(self.model, recorder) if recorder else nullcontext(),
        ):
            return logits_of(self.model, ids, slice(-rows, None), **options)[0]

    def options(self) -> dict[str, Any]:
        """Return what a forward is told of the cache: one that it may write to, whose past nobody else's reading changes."""
        if self.cache is None:
            return {"use_cache": False}
        return {"past_key_values": copied_cache(self.cache), "use_cache": True}
