"""Prompt assembly in token ids: exactly L tokens, haystack, facts, question and answer included, every span known."""

import hashlib
import random
import struct
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .encoding import Encoder
from .haystacks import Haystack
from .needles import Needle, haystack_for

CONTROLS = ("no-needle", "needle-only")


@dataclass(frozen=True)
class Prompt:
    """A prompt of token ids, the answer its last `answer_length` tokens.

    Spans are [start, end) in token positions: the needle's sentence, and the value's tokens inside it; None without needle.
    realised_depth_percent is the share of the context in front of the needle. question_start: where the context ends.
    haystack_start: the sentence of its source that the haystack begins with, None where text is made for each prompt;
    haystack_sentences: how many it has.
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

    @property
    def sha256(self) -> str:
        return hashlib.sha256(struct.pack(f"<{len(self.ids)}i", *self.ids)).hexdigest()


def assemble(
    tokenizer: PreTrainedTokenizerBase,
    needle: Needle,
    source: Haystack,
    context_length: int,
    depth_percent: float,
    seed: str,
    control: str | None = None,
) -> Prompt:
    """Build one prompt of exactly context_length tokens, the needle at the sentence end nearest to depth_percent.

    seed decides everything that is drawn, so equal tokenizers get equal ids. control: `no-needle` leaves the asked facts
    out (the guess rate), `needle-only` leaves the haystack out (the ceiling; the prompt is then as short as it is).
    Raises UserError if context_length cannot hold the facts, the question and the answer.
    """
    rng = random.Random(seed)
    draw = needle.draw(rng)
    source = haystack_for(draw, needle, source)
    encoder = Encoder(tokenizer, source.anchor, source.joiner)
    *fact_ids, tail = encoder.encode([*draw.facts, f"{draw.question}{draw.gap}{draw.answer}"])
    answer_start, answer_end = encoder.find(tail, draw.answer)
    tail = tail[:answer_end]
    facts = list(range(len(draw.facts)))
    if control == "no-needle":
        # the other cities' facts of multikey stay: they are the haystack's, not the question's
        facts = facts[1:] if needle.task == "multikey" else []
    fixed = len(encoder.bos) + len(tail) + sum(len(fact_ids[i]) for i in facts)
    room = 0 if control == "needle-only" else context_length - fixed
    if room < 0:
        raise UserError(
            f"context length {context_length}: shorter than needle, question and answer, {fixed} tokens with this tokenizer; "
            f"give at least {fixed}"
        )
    before = random.Random()  # draws what the window draws first, without drawing it from rng
    before.setstate(rng.getstate())
    hay, ends = encoder.window(source, rng, room)
    places = {i: rng.choice(ends[1:-1] or ends) for i in facts if i > 0}
    if 0 in facts:
        others = sorted((place, len(fact_ids[i])) for i, place in places.items())
        places[0] = place_at(ends, others, depth_percent)
    if draw.ordered:
        # the k-th place holds the k-th fact; the one at the tested depth is whichever comes to stand there
        order = sorted(places, key=lambda i: (places[i], i))
        asked = order.index(0) if order else 0
        places = {rank: places[i] for rank, i in enumerate(order)}
    else:
        asked = 0
    ids, starts = list(encoder.bos), {}
    cut = 0
    for i in sorted(places, key=lambda i: (places[i], i)):
        ids += hay[cut : places[i]]
        cut = places[i]
        starts[i] = len(ids)
        ids += fact_ids[i]
    ids += hay[cut:]
    context = len(ids) - len(encoder.bos)
    ids += tail
    assert control == "needle-only" or len(ids) == context_length
    shown = asked in starts
    start = starts.get(asked)
    value = encoder.find(fact_ids[asked], draw.values[asked]) if shown else None
    in_front = None if start is None else start - len(encoder.bos)
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
    )


def place_at(ends: list[int], others: list[tuple[int, int]], depth_percent: float) -> int:
    """Return the sentence end at which the context in front, other facts (place, length) included, is nearest to the depth."""
    target = depth_percent / 100 * (ends[-1] + sum(length for _, length in others))

    def distance(end: int) -> float:
        return abs(end + sum(length for place, length in others if place < end) - target)

    return min(ends, key=distance)
