"""Prompts that do not fit into memory: smaller batches, then smaller parts."""

import math
from typing import Protocol

import torch
from transformers import PreTrainedModel

from ..data.prompts import Prompt
from ..errors import is_out_of_memory
from ..mechanisms.layers import reads_on
from .answers import UNSCORED, Score
from .forked import Trunk
from .parts import smaller_chunk

# tokens a forward pass works well with; beyond, batching gains nothing
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 8192}


class Scorer(Protocol):
    """Scores prompts of equal length, `chunk` tokens at a time."""

    def __call__(self, prompts: list[Prompt], chunk: int | None = None) -> list[Score]: ...


class BranchScorer(Protocol):
    """Scores prompts of any lengths from where they leave their trunk, the beginning that they share."""

    def __call__(self, prompts: list[Prompt], starts: list[int], trunk: Trunk) -> list[Score]: ...


class InMemory:
    """A scorer that makes do with less memory when it runs out; what still does not fit carries its error and no score.

    halve: halve batches first. chunk: tokens to prefill at a time to begin with; smaller ones are tried, and kept: what one
    prompt did not fit into, the next will not either.
    """

    def __init__(self, model: PreTrainedModel, score: Scorer, halve: bool, chunk: int | None = None) -> None:
        self.model, self.score, self.halve, self.chunk = model, score, halve, chunk
        self.no_branch = math.inf  # tokens of the shortest prompt that did not fit as a branch

    def __call__(self, prompts: list[Prompt]) -> list[Score]:
        """Score prompts of equal length."""
        try:
            return self.score(prompts, self.chunk)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # outside the handler, so that the failed batch's tensors are gone
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.halve and len(prompts) > 1:
            middle = len(prompts) // 2
            return [each for half in (prompts[:middle], prompts[middle:]) for each in self(half)]
        smaller = smaller_chunk(self.model, self.chunk, len(prompts[0].ids))
        if smaller is None:
            return [{**UNSCORED, "error": "out of memory"}] * len(prompts)
        self.chunk = smaller
        return self(prompts)

    def branches(self, score: BranchScorer, prompts: list[Prompt], starts: list[int], trunk: Trunk) -> list[Score]:
        """Score prompts as branches of a trunk; when memory runs out fewer together, then one alone, then whole.

        Those at least as long as one that failed alone are read whole at once; nothing of the trunk is kept beside them.
        """
        if min(len(prompt.ids) for prompt in prompts) >= self.no_branch:
            trunk.forget()
            return [each for prompt in prompts for each in self([prompt])]
        try:
            return score(prompts, starts, trunk)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(prompts) == 1:
            self.no_branch = len(prompts[0].ids)
            trunk.forget()
            return self(prompts)
        middle = len(prompts) // 2
        return [
            each
            for half in (slice(None, middle), slice(middle, None))
            for each in self.branches(score, prompts[half], starts[half], trunk)
        ]


def prompts_at_once(model: PreTrainedModel | None, length: int) -> int:
    """Return how many prompts of a length are read together; of a model elsewhere one, so that each is stored when it is read."""
    return 1 if model is None else max(1, BATCH_TOKENS[reads_on(model).type] // max(1, length))
