"""Requests to a server that completes texts as OpenAI's API does, and what is read of its answers."""

import os
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import UserError
from ..models.foreign import Endpoint
from .foreign import one_line
from .reader import Unread

KEY = "OPENAI_API_KEY"
SECONDS = 600.0  # that one request may take
# puts out what would make another decoding than greedy of temperature 0: llama-cpp-python has a penalty of 1.1 unless told
# otherwise, vLLM takes a model's own; each has its word for it
PLAINLY = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
TOP = 2  # log-probabilities a token: the argmax, and the best rival of a right one


class Token(NamedTuple):
    """A prompt's token as the server has it: its text, its log-probability in nats (None for the first), the best ones there."""

    text: str
    logprob: float | None
    top: dict[str, float]


def tokens_of(found: Any) -> list[Token]:
    """Return the tokens of an echoed prompt, and of what was written."""
    told = found.choices[0].logprobs
    if told is None or not told.tokens or not told.token_logprobs or not told.top_logprobs:
        raise Unread("the server gives no log-probabilities of the prompt")
    columns = (told.tokens, told.token_logprobs, told.top_logprobs)
    if len({*map(len, columns)}) > 1 or not all(isinstance(top, dict | None) for top in told.top_logprobs):
        raise Unread("the server's log-probabilities are not as OpenAI's API has them")
    return [Token(text, logprob, top or {}) for text, logprob, top in zip(*columns, strict=True)]


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
