"""Prompt assembly in token ids: exactly L tokens, haystack, facts, question and answer included, every span known."""

import hashlib
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .chat import Chat, Turn
from .encoding import Encoder
from .haystacks import Haystack
from .needles import FAR_OFF, LISTED, Asked, Draw, Needle, haystack_for
from .windows import Window

CONTROLS = ("no-needle", "needle-only")
TRIES = 4  # to fit a chat's first sentence, which has other tokens behind the header than behind another sentence
KEPT = 97.0  # percent of a haystack that all its questions share: of the rest, each fills up what its words leave of the length
LONG_SENTENCE = 64  # tokens: a needle stays out of sentences that are shorter, however short the context


@dataclass(frozen=True)
class Prompt:
    """A prompt of token ids, the answer its last `answer_length` tokens.

    Spans are [start, end) in token positions: the needle's sentence, and the value's tokens inside it; None without needle.
    realised_depth_percent is the share of the context in front of the needle. question_start: where the context ends.
    haystack_start: the sentence of its source that the haystack begins with, None where text is made for each prompt;
    haystack_sentences: how many it has. values: where each asked value stands in the answer, in its tokens. chat: the template
    that it is a chat of, as rows name it; None without one. to_write: how many tokens an answer may have that is generated;
    None is the answer's own and a few more.
    """

    ids: list[int]
    answer_length: int
    expected: str
    needle: str
    question: str
    needle_start: int | None
    needle_end: int | None
    value_start: int | None
    value_end: int | None
    realised_depth_percent: float | None
    question_start: int
    haystack_start: int | None
    haystack_sentences: int
    values: tuple[tuple[int, int], ...] = ()
    chat: str | None = None
    to_write: int | None = None

    @property
    def sha256(self) -> str:
        return sha256_of(self.ids)


def sha256_of(ids: list[int]) -> str:
    """Return the hash that names a prompt."""
    return hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()


def assemble(
    tokenizer: PreTrainedTokenizerBase,
    needle: Asked,
    source: Haystack,
    context_length: int,
    depth_percent: float,
    seed: str,
    control: str | None = None,
    haystack_seed: str | None = None,
    chat: Chat | None = None,
    depths: Sequence[float] = (),
) -> Prompt:
    """Build one prompt of exactly context_length tokens, the needle at the sentence end nearest to depth_percent.

    seed decides what is drawn, so equal tokenizers get equal ids. haystack_seed (plan 2): decides the haystack instead, what
    of it can be shared by other lengths and depths first; where a long sentence keeps the needle more than 5 points from
    its depth, it stands at the nearest word or character. control: `no-needle` leaves the asked facts out (the guess rate),
    `needle-only` leaves the haystack out (the ceiling; the prompt is then as short as it is). chat: haystack and question
    are a user's message, and the answer follows the assistant's header; all that its template adds counts. depths: where all
    facts stand whose needle asks for all; the question is of the one at depth_percent. Raises UserError if context_length
    cannot hold the facts, the question and the answer.
    """
    turn = None if chat is None else chat.turn(tokenizer)
    room = context_length
    for _ in range(TRIES):
        prompt = laid(tokenizer, needle, source, room, depth_percent, seed, control, haystack_seed, turn, depths)
        if control == "needle-only" or len(prompt.ids) == context_length:
            return prompt if chat is None else replace(prompt, chat=chat.told(tokenizer))
        room += context_length - len(prompt.ids)
    raise UserError(
        f"context length {context_length}: with this chat template and tokenizer no prompt comes out at it; give another length"
    )


def laid(
    tokenizer: PreTrainedTokenizerBase,
    needle: Asked,
    source: Haystack,
    context_length: int,
    depth_percent: float,
    seed: str,
    control: str | None,
    haystack_seed: str | None,
    turn: Turn | None,
    depths: Sequence[float],
) -> Prompt:
    """Build a prompt as assemble says; with a turn as many tokens longer as its first sentence has more behind the header."""
    cell = random.Random(seed)
    rng = cell if haystack_seed is None else random.Random(haystack_seed)  # the haystack's
    asked = depths.index(depth_percent) if needle.asks_all else 0
    if isinstance(needle, Needle) and needle.asks_all:
        draw = needle.draw_all(rng, asked)
    else:
        draw = needle.draw(rng) if haystack_seed is None else needle.draw_in_trial(rng, cell)
    source = haystack_for(draw, needle, source)
    encoder = Encoder(tokenizer, source.anchor, source.joiner)
    prefix = encoder.prefix if turn is None else encoder.header(turn.header)
    if haystack_seed is None and encoder.prefix not in ([], [tokenizer.bos_token_id]):
        raise UserError(
            f"plan 1: it knows a bos_token in front of a prompt and nothing else, but {type(tokenizer).__name__} puts "
            f"{encoder.decode(encoder.prefix)!r} there; take plan 2"
        )
    fact_ids = encoder.encode(draw.facts)
    tail, answer_start = closing(encoder, draw, turn)
    answer_end = len(tail)
    facts = list(range(len(draw.facts)))
    if control == "no-needle":
        # the other cities' facts stay: they are the haystack's, not the question's
        facts = facts[1:] if needle.has_others else []
    fixed = len(prefix) + len(tail) + sum(len(fact_ids[i]) for i in facts)
    room = 0 if control == "needle-only" else context_length - fixed
    if room < 0:
        raise UserError(
            f"context length {context_length}: shorter than needle, question and answer, {fixed} tokens with this tokenizer; "
            f"give at least {fixed}"
        )
    before = random.Random()  # draws what the window draws first, without drawing it from rng
    before.setstate(rng.getstate())
    sizes = {i: len(fact_ids[i]) for i in facts}
    if haystack_seed is None:
        hay, ends = encoder.window(source, rng, room)
        places = {i: rng.choice(ends[1:-1] or ends) for i in facts if i > 0}
        if 0 in facts:
            places[0] = place_at(ends, others_of(places, sizes), depth_percent)
    elif isinstance(needle, Needle) and needle.asks_all:
        # the same for all questions of the trial, whatever their words
        others = (needle.draw_all(random.Random(haystack_seed), other) for other in range(len(depths)))
        least = room + len(tail) - max(len(closing(encoder, other, turn)[0]) for other in others)
        window = Window(encoder, source, rng, room, KEPT)
        places = places_at(window.ends, [sizes[i] for i in facts], depths, least)
        hay, ends = window.ids, window.ends
    else:
        spread = rng if needle.has_others else cell  # whose facts they are: the trial's, or this prompt's
        shares = {i: spread.random() for i in range(1, len(draw.facts))}
        before.setstate(rng.getstate())
        window = Window(encoder, source, rng, room, 0 if control else depth_percent)
        places = places_in(window, sizes, shares, depth_percent)
        hay, ends = window.ids, window.ends
    if draw.ordered:
        # the k-th place holds the k-th fact; the one at the tested depth is whichever comes to stand there
        order = sorted(places, key=lambda i: (places[i], i))
        asked = order.index(0) if order else 0
        places = {rank: places[i] for rank, i in enumerate(order)}
    ids, starts = list(prefix), {}
    cut = 0
    for i in sorted(places, key=lambda i: (places[i], i)):
        ids += hay[cut : places[i]]
        cut = places[i]
        starts[i] = len(ids)
        ids += fact_ids[i]
    ids += hay[cut:]
    if turn is not None and len(ids) > len(prefix):
        first = next((i for i, start in starts.items() if start == len(prefix)), None)
        size = ends[1] if first is None else len(fact_ids[first])
        opened = encoder.opened(turn.header, ids[len(prefix) : len(prefix) + size])
        ids[len(prefix) : len(prefix) + size] = opened
        starts = {i: start if i == first else start + len(opened) - size for i, start in starts.items()}
        if first is not None:
            fact_ids[first] = opened
    context = len(ids) - len(prefix)
    ids += tail
    assert turn is not None or control == "needle-only" or len(ids) == context_length
    shown = asked in starts
    start = starts.get(asked)
    value = encoder.find(fact_ids[asked], draw.values[asked], 0 if asked else draw.later) if shown else None
    in_front = None if start is None else start - len(prefix)
    around = context - len(fact_ids[asked])
    return Prompt(
        ids=ids,
        answer_length=answer_end - answer_start,
        expected=draw.answer,
        needle=draw.facts[asked] if shown else "",
        question=draw.question,
        needle_start=start,
        needle_end=None if start is None else start + len(fact_ids[asked]),
        value_start=None if start is None or value is None else start + value[0],
        value_end=None if start is None or value is None else start + value[1],
        realised_depth_percent=None if in_front is None else (100 * in_front / around if around else 0.0),
        question_start=len(ids) - len(tail),
        haystack_start=source.start(before) if room else None,
        haystack_sentences=len(ends) - 1,
        values=value_spans(encoder, tail[answer_start:], draw.answer)
        if needle.task in LISTED
        else ((0, answer_end - answer_start),),
    )


def closing(encoder: Encoder, draw: Draw, turn: Turn | None) -> tuple[list[int], int]:
    """Return a question's tokens with its answer's, which end them, and where those begin."""
    asked_for = draw.question, draw.gap, draw.answer
    (tail,) = encoder.encode(["".join(asked_for) if turn is None else turn.closing(*asked_for)])
    start, end = encoder.find(tail, draw.answer)
    return tail[:end], start


def value_spans(encoder: Encoder, answer: list[int], text: str) -> tuple[tuple[int, int], ...]:
    """Return where each value stands in the tokens of an answer, which lists them with commas."""
    values = text.split(", ")
    if len(values) == 1:
        return ((0, len(answer)),)
    spans: list[tuple[int, int]] = []
    end = len(answer)
    for value in reversed(values):  # each in front of the next, as one may end with another: spicy-x with icy-x
        try:
            span = encoder.find(answer[:end], value)
        except UserError:  # a token has the end of one and the start of the next
            span = encoder.find(answer, value)
        spans.append(span)
        end = span[0]
    return tuple(reversed(spans))


def places_in(window: Window, sizes: dict[int, int], shares: dict[int, float], depth_percent: float) -> dict[int, int]:
    """Return where plan 2's facts stand: fact 0 at its depth, the others at their shares of the haystack, 0 to 1.

    sizes: tokens of the facts that there are. The window's sentence is cut where it is long and fact 0 would be too far off.
    """

    def at_shares() -> dict[int, int]:
        inner = window.ends[1:-1] or window.ends
        return {i: min(inner, key=lambda end: abs(end - shares[i] * window.length)) for i in sizes if i}

    places = at_shares()
    if 0 not in sizes:
        return places
    others = others_of(places, sizes)
    place = place_at(window.ends, others, depth_percent)
    context = window.length + sum(length for _, length in others)
    in_front = sum(length for at, length in others if at < place)
    wanted = round(depth_percent / 100 * context) - in_front
    is_off = 100 * abs(place - wanted) > FAR_OFF * context
    if is_off and 0 < wanted < window.length and window.sentence_at(wanted) > LONG_SENTENCE:
        window.cut_at(wanted)
        places = at_shares()
        place = place_at(window.ends, others_of(places, sizes), depth_percent)
    return {0: place, **places}


def places_at(ends: list[int], sizes: list[int], depths: Sequence[float], length: int) -> dict[int, int]:
    """Return where facts of these sizes stand, one at each of the depths, which rise: at the sentence end nearest to its depth.

    length: tokens of the haystack that depths are of.
    """
    total, before, places = length + sum(sizes), 0, {}
    for i, (size, depth) in enumerate(zip(sizes, depths, strict=True)):
        target = depth / 100 * (total - size) - before
        places[i] = min(ends, key=lambda end: abs(end - target))
        before += size
    return places


def others_of(places: dict[int, int], sizes: dict[int, int]) -> list[tuple[int, int]]:
    """Return place and length of each fact but the one at the tested depth."""
    return sorted((place, sizes[i]) for i, place in places.items() if i)


def place_at(ends: list[int], others: list[tuple[int, int]], depth_percent: float) -> int:
    """Return the sentence end at which the context in front, other facts (place, length) included, is nearest to the depth."""
    target = depth_percent / 100 * (ends[-1] + sum(length for _, length in others))

    def distance(end: int) -> float:
        return abs(end + sum(length for place, length in others if place < end) - target)

    return min(ends, key=distance)
