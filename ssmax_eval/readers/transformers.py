"""The reader of transformers models: on one device, or spread over several by a device map."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import Prompt
from ..mechanisms.edit import Edit
from ..mechanisms.layers import reads_on
from .again import Again
from .answers import Score, Watch, forced, generate
from .forked import Trunk
from .forked_proof import Forking, forking
from .memory import InMemory, Scorer
from .nll import token_nll
from .preflight import preflight
from .reader import AGAIN, ANSWERS, FORKED, GENERATE, NLL, WEIGHTS, refuse_lacking


class TransformersReader:
    """Reads prompts with a transformers model, in whatever setting it is at that moment.

    gives: what it can be asked for. answers: verdicts and nll of given answers from one forward. generate: greedy decoding. nll: of
    every token. weights: what every head does in chosen rows. rows read again: over one prefill, with queries multiplied.
    answers of prompts that begin alike: what they share is read once.
    """

    gives = frozenset({AGAIN, ANSWERS, FORKED, GENERATE, NLL, WEIGHTS})
    scoring: ClassVar[str] = "forced"  # how answers are scored

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer

    def prove(self, longest: int, needs: frozenset[str], mechanism: bool = False) -> dict[str, Any]:
        """Compare our ways of reading with the model's own on a short input (preflight), and return what was found.

        longest: tokens of the longest prompt to come. needs: what will be asked for. mechanism: one stands on the model, its
        own or swapped in. Raises UserError for what this reader, or the model, cannot give.
        """
        refuse_lacking(self, needs)
        ours = mechanism or AGAIN in needs  # edits pass through our attention function
        found = preflight(self.model, self.tokenizer, longest, mechanism=ours, masses=WEIGHTS in needs)
        return found | ({"forked": str(self.forking(longest, needs))} if FORKED in needs else {})

    def inputs(self, prompt: Prompt) -> int:
        """Return how many of a prompt's tokens the model is given: the last one of the answer predicts nothing that is asked."""
        return len(prompt.ids) - 1

    def answers(self, prompts: list[Prompt], chunk: int | None = None, watch: Watch | None = None) -> list[Score]:
        """Score prompts of equal length, teacher-forced, in one forward (answers.forced)."""
        return forced(self.model, self.tokenizer, prompts, chunk, watch)

    def forking(self, longest: int, needs: frozenset[str] = frozenset()) -> Forking:
        """Return how prompts that begin alike are read for what is needed, or why each is read whole (forked_proof.forking)."""
        return forking(self.model, longest, needs)

    def forked(
        self, prompts: list[Prompt], starts: list[int], trunk: Trunk, watches: Sequence[Watch] = ()
    ) -> list[Score]:
        """Score prompts as answers does, each from where it leaves the trunk (Trunk.score)."""
        return trunk.score(self.model, self.tokenizer, prompts, starts, watches)

    def again(
        self,
        prompts: list[Prompt],
        start: int,
        before: Mapping[int, Edit] | None = None,
        chunk: int | None = None,
        starts: list[int] | None = None,
        trunk: Trunk | None = None,
    ) -> Again:
        """Return prompts of equal length whose rows from `start` on can be read again and again (again.Again).

        before: edits of what comes before. starts, trunk: that is read from where each prompt leaves the trunk.
        """
        texts = [prompt.ids[: self.inputs(prompt)] for prompt in prompts]
        cache = None
        if start and trunk is not None and starts is not None:
            cache = (trunk.under(before) if before else trunk).cache(self.model, texts, starts, start)
        ids = torch.tensor(texts, device=reads_on(self.model))
        return Again(self.model, ids, start, chunk, before, cache)

    def generate(self, prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        """Decode each prompt's answer greedily (answers.generate)."""
        return generate(self.model, self.tokenizer, prompts, chunk)

    def nll(self, ids: Tensor, chunk: int | None = None) -> Tensor:
        """Return each token's nll but the first's, in nats, float32 (batch, length - 1) on the CPU (nll.token_nll)."""
        return token_nll(self.model, ids, chunk)

    def in_memory(self, score: Scorer, halve: bool, chunk: int | None = None) -> InMemory:
        """Return a scorer that makes do with less memory when it runs out."""
        return InMemory(self.model, score, halve, chunk)

    def describe(self) -> dict[str, Any]:
        """Return what a record tells of the reader."""
        placed = getattr(self.model, "hf_device_map", None)
        devices = {str(place) for place in placed.values()} if placed else {str(reads_on(self.model))}
        return {"reader": "transformers", "devices": sorted(devices)}
