"""RULER's prompts in token ids: prompt and the tokens of its answer to come are exactly the context length."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from ..chat import Chat
from ..encoding import Encoder
from ..haystacks import Haystack
from ..prompts import Prompt
from .drawn import Drawn, Draws, Text
from .lists import Common, Frequent
from .niah import Niah
from .tasks import Task
from .tracing import Tracing

KINDS: dict[str, Callable[[Draws], Drawn]] = {"ruler_vt": Tracing, "ruler_cwe": Common, "ruler_fwe": Frequent}
TRIES = 8  # to make the length come out: a few tokens can become others where texts meet


@dataclass(frozen=True)
class RulerPrompt(Prompt):
    """A prompt of RULER. references: what its answer has to hold, in any order and case."""

    references: tuple[str, ...] = ()


class Sentences:
    """The prose of one trial, sentence by sentence; start: the first one's number in its source."""

    def __init__(self, source: Haystack, seed: str) -> None:
        self.start = source.start(random.Random(seed))
        self._more = source.sentences(random.Random(seed))
        self._known: list[str] = []

    def __call__(self, count: int) -> list[str]:
        while len(self._known) < count:
            self._known.append(next(self._more))
        return self._known


@dataclass(frozen=True)
class Written:
    """A task's text as tokens: in a chat template, or behind what the tokenizer puts in front of a text."""

    encoder: Encoder
    header: str | None
    footer: str

    def front(self) -> list[int]:
        """Return what stands in front of the text: the header, or what the tokenizer puts there."""
        return self.encoder.prefix if self.header is None else self.encoder.header(self.header)

    def said(self, text: Text) -> str:
        """Return the whole up to the answer."""
        between = " " if self.header is None else self.footer
        return f"{self.header or ''}{text.before}{text.context}{text.behind}{between}{text.prefix}"

    def ids(self, text: str) -> list[int]:
        """Return a text's ids; a header is part of it."""
        return [*(self.encoder.prefix if self.header is None else []), *self.encoder.bare(text)]


@dataclass(frozen=True)
class Draft:
    """A prompt before it has its size: what it draws, how its text becomes tokens, and its prose."""

    task: Task
    context_length: int
    drawn: Drawn
    written: Written
    prose: Sentences

    def tokens(self, size: int) -> int:
        return len(self.written.ids(self.written.said(self.drawn.text(size))))

    @cached_property
    def shortest(self) -> int:
        """The tokens of the smallest prompt that this draw can be, with those that its answer may have."""
        return self.tokens(self.drawn.least) + self.task.to_write

    def refuse_short(self) -> None:
        """Raise UserError if the context length cannot hold the smallest prompt and the answer that it may have."""
        if self.shortest > self.context_length:
            raise UserError(
                f"context length {self.context_length}: shorter than task {self.task.name} is with this tokenizer, "
                f"{self.task.to_write} tokens of its answer included; give at least {self.shortest}"
            )


def draft(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    source: Haystack,
    context_length: int,
    seed: str,
    haystack_seed: str,
    chat: Chat | None = None,
) -> Draft:
    """Draw one prompt. Its parameters are those of ruler_prompt."""
    turn = None if chat is None else chat.turn(tokenizer)
    encoder = Encoder(tokenizer, ".", " ")
    written = Written(encoder, None if turn is None else turn.header, "" if turn is None else turn.footer)
    prose = Sentences(source, haystack_seed)
    anchor = len(encoder.bare("."))
    draws = Draws(task, seed, prose, source.joiner, lambda text: len(encoder.bare(f".{text}")) - anchor, context_length)
    return Draft(task, context_length, KINDS.get(task.name, Niah)(draws), written, prose)


def ruler_prompt(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    source: Haystack,
    context_length: int,
    seed: str,
    haystack_seed: str,
    chat: Chat | None = None,
) -> RulerPrompt:
    """Build one prompt: with the tokens that its answer may have it takes exactly context_length tokens.

    seed: decides its keys, values and places. haystack_seed: where its prose begins, if it has any. Its ids are those of its
    text, whatever the tokenizer; where a text of just that many tokens cannot be, empty lines stand in front. chat: the question
    is a user's message, and the answer's first words are the assistant's. Raises UserError if context_length is too short.
    """
    made = draft(tokenizer, task, source, context_length, seed, haystack_seed, chat)
    made.refuse_short()
    drawn, written, room = made.drawn, made.written, context_length - task.to_write
    size = largest(made.tokens, room, drawn.least)
    text, ids = fitted(drawn, written, size, room)
    said = written.said(text)
    missing = room - len(ids)
    if missing:
        line = written.encoder.bare("\n")[-1:] or written.encoder.filler()  # some tokenizers drop line ends
        front = len(written.front())
        ids = [*ids[:front], *line * missing, *ids[front:]]
    assert len(ids) == room
    answer = answer_ids(written, said, drawn.answer)[: task.to_write]
    is_prose = task.haystack == "text"
    return RulerPrompt(
        ids=[*ids, *answer],
        answer_length=len(answer),
        expected=drawn.answer.strip(),
        needle="",
        question=f"{text.behind.strip()} {text.prefix}",
        needle_start=None,
        needle_end=None,
        value_start=None,
        value_end=None,
        realised_depth_percent=None,
        question_start=len(written.ids(said[: said.rindex(text.behind)])) + missing,
        haystack_start=made.prose.start if is_prose else None,
        haystack_sentences=size if is_prose else 0,
        chat=None if chat is None else chat.told(tokenizer),
        to_write=task.to_write,
        references=tuple(drawn.references),
    )


def fitted(drawn: Drawn, written: Written, size: int, room: int) -> tuple[Text, list[int]]:
    """Return the text of a size that has `room` tokens, or the longest that was found with fewer."""
    best: tuple[Text, list[int]] | None = None
    extra = 0
    for _ in range(TRIES):
        text = drawn.text(size, extra)
        ids = written.ids(written.said(text))
        if best is None or len(best[1]) < len(ids) <= room:
            best = text, ids
        if len(ids) == room:
            break
        extra = max(1, extra + room - len(ids))
    assert best is not None
    return best


def largest(tokens: Callable[[int], int], room: int, least: int) -> int:
    """Return the largest size of which there are no more than `room` tokens; the least has no more. They grow about evenly."""
    low, at = least, tokens(least)
    high, above = low + 8, tokens(low + 8)
    while above <= room:
        slope = max((above - at) / (high - low), 0.1)
        low, at = high, above
        high = low + 1 + int(1.02 * (room - at) / slope)
        above = tokens(high)
    while high - low > 1:
        guess = low + int((room - at) / (above - at) * (high - low))
        guess = min(max(guess, low + 1), high - 1)
        found = tokens(guess)
        if found <= room:
            low, at = guess, found
        else:
            high, above = guess, found
    return low


def answer_ids(written: Written, said: str, answer: str) -> list[int]:
    """Return an answer's tokens as they follow a prompt."""
    before, whole = written.ids(said), written.ids(said + answer)
    return whole[len(before) :] if whole[: len(before)] == before else written.encoder.bare(answer)
