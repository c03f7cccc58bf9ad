"""Branches of a trunk that are read from copies of a model's state: for models of which several texts cannot be read in one forward.

A recurrent state holds all that was read and cannot be cropped. So the trunk is read on from branch to branch, and each branch
reads on from a copy. The trunk is cut wherever a branch leaves it, done or not, so that numbers hang on tokens alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import Prompt
from ..mechanisms.layers import reads_on
from .answers import Score, score_rows
from .forked import Trunk
from .head import logits_of
from .parts import MASK_ENTRIES
from .prefill import copied_cache

State = dict[str, Any]  # what a forward is told of what was read before, by the name of its argument; {} for nothing
# tokens that the longest prompt has at least. A prompt takes two forwards more than whole reading, which takes several prompts in
# one, and spares about .4 of its tokens. On a CPU models of 1 to 4 million parameters break even at 512; the others are estimates
LEAST = {"cpu": 512, "cuda": 8192, "mps": 2048}
NAMES = ("past_key_values", "cache_params", "state")  # under which models take it and return it


class Trail:
    """A trunk that is read on as far as its branches come, and the model's state there.

    ids: the trunk's tokens. starts: where branches leave it.
    """

    def __init__(self, model: PreTrainedModel, ids: Sequence[int], starts: Sequence[int]) -> None:
        self.model, self.ids, self.cuts = model, list(ids), sorted(set(starts))
        self.forget()

    def forget(self) -> None:
        """Give the state's memory back; the next branch reads the trunk anew."""
        self.at, self.state = 0, State()

    def logits(self, own: list[int], start: int, rows: Tensor) -> Tensor:
        """Return the logits (1, chosen, vocabulary) of rows, in order, of a branch: of `own`, its tokens from `start` on.

        start: one of the starts; after a later one the trunk is read anew.
        """
        at, state = (self.at, self.state) if self.at <= start else (0, State())
        # what runs out of memory leaves no state half written, and all memory to the prompt that is then read whole
        self.forget()
        for cut in self.cuts:
            if at < cut <= start:
                _, state = read_on(self.model, self.ids[at:cut], at, state, torch.empty(0, dtype=torch.int64))
                at = cut
        logits, _ = read_on(self.model, own, start, copied(state), rows)
        self.at, self.state = at, state
        return logits

    def score(
        self, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], starts: list[int], trunk: Trunk
    ) -> list[Score]:
        """Score prompts, of any lengths, each from a copy of the state where it leaves its trunk, which is this one's.

        Scores are those of answers.forced, to rounding.
        """
        scores = []
        for prompt, start in zip(prompts, starts, strict=True):
            own = prompt.ids[start:-1]
            logits = self.logits(own, start, torch.arange(len(own) - prompt.answer_length, len(own)))
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


def pieces(length: int, before: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) that cut `length` tokens behind others so that a piece's mask of all keys is small; the first need none."""
    size = max(1, MASK_ENTRIES // (before + length)) if before else length
    for start in range(0, length, size):
        yield start, min(start + size, length)


def copied(state: State) -> State:
    """Return a copy of a state that a forward may write to."""
    return {name: copied_cache(kept) for name, kept in state.items()}
