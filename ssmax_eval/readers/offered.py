"""What a server gives is asked of it on a short text, once, and compared with what it writes itself."""

import itertools
from functools import lru_cache
from typing import NamedTuple

from ..errors import UserError
from ..models.foreign import Endpoint
from .reader import ANSWERS, GENERATE, NLL, Unread
from .server import client_of, complete, key, reason, refuse_cut, tokens_of

TRIED = "The grass is green. The sky is blue. The sun is yellow. The grass is"
WRITTEN = 8  # tokens that are written, then read again
NEAR = 0.1  # nats by which a token that the server wrote may be off its argmax when it is read: batches round otherwise
PASSING = (408, 409, 425, 429, 502, 503, 504)  # statuses of a server that is busy, starting or between two others


class Offered(NamedTuple):
    """What a server was found to give. ids: whether it takes token ids. plainly: whether it takes PLAINLY. counts: whether it says how
    many tokens it read. why: there is no forced scoring, if there is none.
    """

    gives: frozenset[str]
    ids: bool
    plainly: bool
    counts: bool
    why: str | None


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
