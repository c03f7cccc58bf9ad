"""The reader of a server that completes texts as OpenAI's API does: vLLM, SGLang, llama.cpp and their like.

Where the server gives the log-probabilities of a prompt's own tokens (echo), one request gives a verdict and its nll, as one
forward does. What it gives is asked of it on a short text first, and compared with what it writes: servers differ, and one
that numbers its tokens otherwise would be believed wrongly.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import Prompt
from ..models.foreign import Endpoint
from .answers import Score, Watch, to_write
from .foreign import ForeignReader, described, unscored, written
from .offered import offered
from .reader import ANSWERS, NLL, Unread, refuse_lacking
from .server import Token, complete, other_length, refuse_cut, tokens_of


class EndpointReader(ForeignReader):
    """Asks a server's /completions; a request that fails is the reason why a sample has no score.

    A prompt that the server has other tokens of (it cuts prompts, or its tokenizer is another) has no score either.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint.counting.tokenizer)
        self.endpoint = endpoint
        self.offered = offered(endpoint)
        self.gives = self.offered.gives

    def prove(self, longest: int, needs: frozenset[str], mechanism: bool = False) -> dict[str, Any]:
        """Return how the server takes prompts, and what shows that it reads as many tokens as they have."""
        refuse_lacking(self, needs)
        taken = "token ids" if self.offered.ids else "text"
        by = "the server's count of each prompt" if self.offered.counts else "nothing: the server does not count"
        if needs & {ANSWERS, NLL}:
            by = "the tokens that the server gives back of each prompt"
        penalties = "put out" if self.offered.plainly else "the server's own, if it has any"
        return {"tokens": 0, "prompts_as": taken, "length_proved_by": by, "penalties": penalties} | (
            {"no_forced_scoring": self.offered.why} if self.offered.why else {}
        )

    def prompt(self, ids: list[int]) -> list[int] | str:
        """Return token ids as the server takes them: what the tokenizer puts in front of a text, a server that takes text puts there."""
        return ids if self.offered.ids else self.text(ids[self.prefix :])

    def answers(self, prompts: list[Prompt], chunk: int | None = None, watch: Watch | None = None) -> list[Score]:
        """Score given answers, one request each, all at once."""
        return self.at_once(self.forced, prompts)

    def generate(self, prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        """Score what the server writes at temperature 0, one request each, all at once."""
        return self.at_once(self.decoded, prompts)

    def at_once(self, score: Any, prompts: list[Prompt]) -> list[Score]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(score, prompts))

    def forced(self, prompt: Prompt) -> Score:
        """Score one given answer, teacher-forced: right if each of its tokens is the most probable one there."""
        try:
            tokens = self.read(prompt.ids)[-prompt.answer_length :]
        except Unread as error:
            return unscored(str(error))
        hits = [is_argmax(token) for token in tokens]
        leads = [lead(token) for token in tokens]
        predicted = [max(token.top, key=lambda text: token.top[text]) for token in tokens]
        known = [each for each in leads if each is not None]
        return {
            "predicted": "".join(predicted),
            "predicted_tokens": predicted,
            "expected_tokens": [self.text([token]) for token in prompt.ids[-prompt.answer_length :]],
            "correct": all(hits),
            "first_correct": hits[0],
            "answer_nll": -sum(token.logprob or 0.0 for token in tokens),
            "answer_ranks": None,
            "margin": min(known) if len(known) == len(tokens) else None,
            "error": None,
        }

    def decoded(self, prompt: Prompt) -> Score:
        """Score what is written after one prompt's question."""
        ids = prompt.ids[: -prompt.answer_length]
        try:
            found = complete(self.endpoint, self.prompt(ids), to_write(prompt), self.offered.plainly)
            refuse_cut(found, len(ids))
        except Unread as error:
            return unscored(str(error))
        choice = found.choices[0]
        return written(prompt, choice.text, getattr(choice, "finish_reason", None) == "length")

    def nll(self, ids: Tensor, chunk: int | None = None) -> Tensor:
        """Return each token's nll but the first's, from one request a sequence."""
        rows = [[-(token.logprob or 0.0) for token in self.read(row)[1:]] for row in ids.tolist()]
        return torch.tensor(rows)

    def read(self, ids: list[int]) -> list[Token]:
        """Return the prompt's tokens as the server has them. Raises Unread if it has others or fewer, or does not answer."""
        found = complete(self.endpoint, self.prompt(ids), 1, self.offered.plainly, echo=True)
        refuse_cut(found, len(ids))
        tokens = tokens_of(found)
        if len(tokens) - len(ids) not in (0, 1):  # with the one that it wrote
            raise Unread(other_length(len(tokens) - 1, len(ids)))
        if any(token.logprob is None or not token.top for token in tokens[1 : len(ids)]):
            raise Unread("the server left out log-probabilities of the prompt")
        return tokens[: len(ids)]

    def describe(self) -> dict[str, Any]:
        """Return what a record tells of the reader."""
        return described("endpoint")


def is_argmax(token: Token) -> bool:
    return token.logprob is not None and token.logprob >= max(token.top.values())


def lead(token: Token) -> float | None:
    """Return how far a token leads its best rival, in logits; None where the server tells of no rival."""
    assert token.logprob is not None
    best = sorted(token.top.values(), reverse=True)
    if token.logprob < best[0]:
        return token.logprob - best[0]
    return token.logprob - best[1] if len(best) > 1 else None
