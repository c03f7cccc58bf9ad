"""The reader of a server that completes texts as OpenAI's API does: vLLM, SGLang, llama.cpp and their like.

Where the server gives the log-probabilities of a prompt's own tokens (echo), one request gives a verdict and its nll, as one
forward does. What it gives is asked of it on a short text first, and compared with what it writes: servers differ, and one
that numbers its tokens otherwise would be believed wrongly.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.prompts import Prompt
from ..errors import UserError
from ..models.foreign import Endpoint
from .answers import EXTRA_GENERATED_TOKENS, Score, Watch
from .foreign import ForeignReader, described, one_line, unscored, written
from .reader import ANSWERS, GENERATE, NLL, Unread, refuse_lacking

KEY = "OPENAI_API_KEY"
SECONDS = 600.0  # that one request may take
TRIED = "The grass is green. The sky is blue. The sun is yellow. The grass is"
WRITTEN = 8  # tokens that are written, then read again
NEAR = 0.1  # nats by which a token that the server wrote may be off its argmax when it is read: batches round otherwise
# puts out what would make another decoding than greedy of temperature 0: llama-cpp-python has a penalty of 1.1 unless told
# otherwise, vLLM takes a model's own; each has its word for it
PLAINLY = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
PASSING = (408, 409, 425, 429, 502, 503, 504)  # statuses of a server that is busy, starting or between two others
TOP = 2  # log-probabilities a token: the argmax, and the best rival of a right one


class Token(NamedTuple):
    """A prompt's token as the server has it: its text, its log-probability in nats (None for the first), the best ones there."""

    text: str
    logprob: float | None
    top: dict[str, float]


class Offered(NamedTuple):
    """What a server was found to give. ids: whether it takes token ids. plainly: whether it takes PLAINLY. counts: whether it says how
    many tokens it read. why: there is no forced scoring, if there is none.
    """

    gives: frozenset[str]
    ids: bool
    plainly: bool
    counts: bool
    why: str | None


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
            found = complete(
                self.endpoint, self.prompt(ids), prompt.answer_length + EXTRA_GENERATED_TOKENS, self.offered.plainly
            )
            refuse_cut(found, len(ids))
        except Unread as error:
            return unscored(str(error))
        return written(prompt, found.choices[0].text)

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


def tokens_of(found: Any) -> list[Token]:
    """Return the tokens of an echoed prompt, and of what was written."""
    told = found.choices[0].logprobs
    if told is None or not told.tokens or not told.token_logprobs or not told.top_logprobs:
        raise Unread("the server gives no log-probabilities of the prompt")
    return [
        Token(*each[:2], each[2] or {})
        for each in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True)
    ]


def refuse_cut(found: Any, length: int) -> None:
    """Raise Unread if the server counts other tokens in a prompt than it has."""
    if found.usage is not None and found.usage.prompt_tokens not in (None, length):
        raise Unread(other_length(found.usage.prompt_tokens, length))


def other_length(read: int, length: int) -> str:
    return f"the server read {read} tokens of {length}: it cuts prompts, or its tokenizer is another (--tokenizer)"


@lru_cache(maxsize=64)
def client_of(url: str, key: str) -> Any:
    """Return the client of a server; it tries again what failed by chance. Raises UserError."""
    try:
        from openai import OpenAI
    except ModuleNotFoundError as error:
        raise UserError(f"model {url}: to read a server needs openai; run: pip install openai") from error
    return OpenAI(base_url=url, api_key=key, timeout=SECONDS)


def key() -> str:
    return os.environ.get(KEY) or "none"


def complete(
    endpoint: Endpoint, prompt: list[int] | str, tokens: int, plainly: bool, echo: bool = False, retry: bool = True
) -> Any:
    """Return the server's completion, greedy. Raises Unread for whatever goes wrong."""
    client = client_of(endpoint.url, key())
    client = client if retry else client.with_options(max_retries=0)
    more: dict[str, Any] = {"echo": True, "logprobs": TOP} if echo else {}
    more |= {"extra_body": PLAINLY} if plainly else {}
    try:
        found = client.completions.create(model=endpoint.name, prompt=prompt, max_tokens=tokens, temperature=0, **more)
        if not found.choices or not isinstance(found.choices[0].text, str):
            raise Unread("the server's answer is no completion")
    except Unread:
        raise
    except Exception as error:  # of the client, of the connection below it, and of answers that are no JSON
        raise Unread(reason(error)) from error
    return found


def reason(error: Exception) -> str:
    """Say why a request failed, in one line, without the key."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return f"the server did not answer within {SECONDS:.0f} s"
    if isinstance(error, openai.APIConnectionError):
        return one_line(f"the server cannot be reached ({error.__cause__ or error})")
    text = error.message if isinstance(error, openai.APIError) else f"{type(error).__name__}: {error}"
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        text = f"the server answered {error.status_code}: {body.get('message') or body.get('detail') or text}"
        if error.status_code in (401, 403):
            text += f" (its key is read from {KEY})"
    return one_line(text, (key(),))


@lru_cache(maxsize=64)
def offered(endpoint: Endpoint) -> Offered:
    """Ask a server, once, what it gives. Raises UserError for one that does not answer, or has no such model."""
    shown = f"model {endpoint.url}#{endpoint.name}"
    refuse_unknown_name(endpoint, shown)
    ids: list[int] = endpoint.counting.tokenizer(TRIED).input_ids
    why, whole = None, None
    for takes_ids, plainly in itertools.product((True, False), (True, False)):
        try:
            whole = complete(endpoint, ids if takes_ids else TRIED, WRITTEN, plainly, retry=False)
            break
        except Unread as error:
            why = str(error)
            refuse_passing(error, shown)
    if whole is None:
        raise UserError(f"{shown}: {why}")
    try:
        refuse_cut(whole, len(ids))
    except Unread as error:
        raise UserError(f"{shown}: {error}") from error
    counts = whole.usage is not None and whole.usage.prompt_tokens is not None
    why = unlike_its_own(endpoint, ids, whole.choices[0].text, takes_ids, plainly, shown)
    gives = {GENERATE} if why else {GENERATE, ANSWERS, NLL}
    return Offered(frozenset(gives), takes_ids, plainly, counts, why)


def refuse_passing(error: Unread, shown: str) -> None:
    """Raise UserError for a failure that may pass: it tells nothing of what the server gives."""
    import openai

    cause = error.__cause__
    busy = isinstance(cause, openai.APIStatusError) and cause.status_code in PASSING
    if busy or isinstance(cause, openai.APIConnectionError):
        raise UserError(f"{shown}: {error}; the same command asks again") from error


def refuse_unknown_name(endpoint: Endpoint, shown: str) -> None:
    """Raise UserError if the server lists its models and this is none of them: some answer with another model then."""
    client = client_of(endpoint.url, key()).with_options(max_retries=0)
    try:
        names = [each.id for each in client.models.list().data or []]
    except Exception as error:
        import openai

        if isinstance(error, openai.APIConnectionError):
            raise UserError(f"{shown}: {reason(error)}; is it running?") from error
        return  # not every server has a list
    if names and endpoint.name not in names and not endpoint.name.startswith(("/", ".")):  # a path is in no list
        raise UserError(f"{shown}: the server has no such model; it has {', '.join(names[:5])}")


def unlike_its_own(
    endpoint: Endpoint, ids: list[int], text: str, takes_ids: bool, plainly: bool, shown: str
) -> str | None:
    """Return why log-probabilities of prompts are not to be had or to be believed; None if they agree with what the server writes."""
    tokenizer = endpoint.counting.tokenizer
    whole = [*ids, *tokenizer(text, add_special_tokens=False).input_ids]
    try:
        tokens = tokens_of(complete(endpoint, whole if takes_ids else TRIED + text, 1, plainly, echo=True, retry=False))
    except Unread as error:
        refuse_passing(error, shown)
        return str(error)
    read = tokens[len(ids) : len(whole)]
    if len(tokens) - len(whole) not in (0, 1) or not read:
        return "the server gives no log-probabilities of a prompt's own tokens"
    off = [max(token.top.values(), default=0.0) - token.logprob for token in read if token.logprob is not None]
    if len(off) < len(read) or max(off) > NEAR:
        return "the server's log-probabilities of a prompt do not agree with what it writes itself"
    return None
