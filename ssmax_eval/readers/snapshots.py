"""Branches of a trunk that are read from copies of a model's state: for models of which several texts cannot be read in one forward.

A recurrent state holds all that was read and cannot be cropped. So the trunk is read on from branch to branch, and each branch
reads on from a copy. The trunk is cut wherever a branch leaves it, done or not, so that numbers hang on tokens alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import Prompt
from ..errors import UserError
from ..mechanisms.edit import Edit
from ..mechanisms.interface import edited, recording
from ..mechanisms.layers import reads_on
from ..mechanisms.recorder import Recorder
from .answers import Score, Watch, last_part, mean_nll, score_rows
from .forked import Trunk
from .head import logits_of
from .parts import MASK_ENTRIES
from .prefill import copied_cache, empty_cache

State = dict[str, Any]  # what a forward is told of what was read before, by the name of its argument; {} for nothing
# tokens that the longest prompt has at least. A prompt takes two forwards more than whole reading, which takes several prompts in
# one, and spares about .4 of its tokens; looked at, or read again, it takes more of both. On a CPU models of 1 to 4 million
# parameters break even at 512, as measured of plain answers; the others are estimates
LEAST = {"cpu": 512, "cuda": 8192, "mps": 2048}
NO_ROWS = torch.empty(0, dtype=torch.int64)
NAMES = ("past_key_values", "cache_params", "state")  # under which models take it and return it


class Trail(Trunk):
    """A trunk that is read on as far as its branches come, and the model's state there. Its branches are read one by one.

    ids: its tokens. starts: where branches leave it. keep_all: windowed layers keep the keys behind their window too, so that every
    layer's keys are the prompt's tokens; for rows that are looked at, or read again. edits: as a trunk's.
    """

    caches = 1

    def __init__(
        self,
        ids: Sequence[int],
        starts: Sequence[int],
        keep_all: bool = False,
        edits: Mapping[int, Edit] | None = None,
    ) -> None:
        super().__init__(ids, edits)
        self.cuts, self.keep_all = sorted(set(starts)), keep_all
        self.forget()

    def under(self, edits: Mapping[int, Edit]) -> "Trail":
        if self.other is None:
            self.other = Trail(self.ids, self.cuts, self.keep_all, edits)
        assert isinstance(self.other, Trail)
        return self.other

    def forget(self) -> None:
        super().forget()
        self.at, self.state = 0, State()

    @contextmanager
    def snapshot(self, model: PreTrainedModel, start: int) -> Iterator[State]:
        """Yield a copy of the model's state at one of the starts; after a later one the trunk is read anew.

        What fails in the block, or before it, leaves no state half written, and all memory to the prompt that is then read whole.
        """
        at, state = (self.at, self.state) if self.at <= start else (0, State())
        self.at, self.state = 0, State()
        if not at and self.keep_all:
            state = {"past_key_values": empty_cache(model, keep_all=True)}
        for cut in self.cuts:
            if at < cut <= start:
                state = self.read_on(model, self.ids[at:cut], at, state)
                at = cut
        yield copied(state)
        self.at, self.state = at, state

    def read_on(self, model: PreTrainedModel, ids: list[int], start: int, state: State) -> State:
        """Return the state after ids, none of whose rows are wanted, under the edits."""
        with edited(model, self.edits) if self.edits else nullcontext():
            return read_on(model, ids, start, state, NO_ROWS)[1] if ids else state

    def logits(
        self, model: PreTrainedModel, texts: list[list[int]], starts: list[int], rows: list[Tensor]
    ) -> list[Tensor]:
        found = []
        for own, start, chosen in zip(texts, starts, rows, strict=True):
            with self.snapshot(model, start) as state:
                found.append(read_on(model, own, start, state, chosen)[0])
        return found

    def cache(self, model: PreTrainedModel, ids: list[list[int]], starts: list[int], stop: int) -> Any:
        (text,), (start,) = ids, starts
        with self.snapshot(model, start) as state:
            state = self.read_on(model, text[start:stop], start, state)
        if "past_key_values" not in state:
            raise UserError(f"its state ({', '.join(state) or 'none is returned'}) is no cache of keys and values")
        return state["past_key_values"]

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[Prompt],
        starts: list[int],
        watches: Sequence[Watch] = (),
    ) -> list[Score]:
        scores = []
        for i, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
            own, watch = prompt.ids[start:-1], watches[i] if watches else None
            with self.snapshot(model, start) as state:
                if watch is None:
                    rows = torch.arange(len(own) - prompt.answer_length, len(own))
                    logits, _ = read_on(model, own, start, state, rows)
                else:
                    logits = watched(model, prompt, start, state, watch)
            scores.append(score_rows(tokenizer, prompt, logits[0]))
        return scores


@torch.inference_mode()
def read_on(model: PreTrainedModel, ids: list[int], start: int, state: State, rows: Tensor) -> tuple[Tensor, State]:
    """Return the logits (1, chosen, vocabulary) of some rows of ids, in order, and the state after them.

    start: the first one's position. state: what was read before, which may be written to.
    """
    device = reads_on(model)
    parts = []
    for first, stop in pieces(len(ids), start):
        own = rows[(first <= rows) & (rows < stop)] - first
        returned: list[Any] = []
        hook = model.register_forward_hook(lambda module, given, output, into=returned: into.append(output))
        try:
            tokens = torch.tensor([ids[first:stop]], device=device)
            logits, _ = logits_of(model, tokens, own.to(device), use_cache=True, **state)
        finally:
            hook.remove()
        state = {name: kept for name in NAMES if (kept := getattr(returned[0], name, None)) is not None}
        parts.append(logits)
    return torch.cat(parts, 1), state


@torch.inference_mode()
def watched(model: PreTrainedModel, prompt: Prompt, start: int, state: State, watch: Watch) -> Tensor:
    """Return the logits (1, answer tokens, vocabulary) of a prompt from `start` on, its last rows looked at.

    state: what was read before, which may be written to. All rows that are looked at are read by one forward.
    """
    first = last_part(len(prompt.ids) - 1 - prompt.answer_length, watch.positions)
    if first > start:
        _, state = read_on(model, prompt.ids[start:first], start, state, NO_ROWS)
    recorder = Recorder(watch.rows - first, watch.reduce)
    ids = torch.tensor([prompt.ids[first:-1]], device=reads_on(model))
    with recording(model, recorder):
        logits, decoded = logits_of(model, ids, slice(-prompt.answer_length, None), use_cache=True, **state)
    watch.kept = recorder.kept
    watch.nll = mean_nll(model, decoded, ids, [[at - first for at in watch.positions[0]]])
    return logits


def pieces(length: int, before: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) that cut `length` tokens behind others so that a piece's mask of all keys is small; the first need none."""
    size = max(1, MASK_ENTRIES // (before + length)) if before else length
    for start in range(0, length, size):
        yield start, min(start + size, length)


def copied(state: State) -> State:
    """Return a copy of a state that a forward may write to."""
    return {name: copied_cache(kept) for name, kept in state.items()}
