"""RULER's needles: several keys and values in noise, in prose, or among needles that nobody asks for."""

import random
import uuid
from collections.abc import Iterator

from ..vocabulary import ADJECTIVES, TRADES, VALUE_ADJECTIVES, VALUE_NOUNS
from .drawn import Draws, Text, beginning
from .tasks import DEPTHS, NOISE, listed, needle_of, niah_parts

KEY_ADJECTIVES = [*dict.fromkeys([*VALUE_ADJECTIVES, *ADJECTIVES])]
KEY_NOUNS = [*VALUE_NOUNS, *TRADES]
REDRAWN = 64  # other needles that are tried for each one, to make a prompt's length come out


def drawn(rng: random.Random, kind: str) -> Iterator[str]:
    """Yield words (adjective-noun), 7-digit numbers or version 4 UUIDs without end, none twice."""
    known: set[str] = set()
    while True:
        if kind == "word":
            value = f"{rng.choice(KEY_ADJECTIVES)}-{rng.choice(KEY_NOUNS)}"
        elif kind == "number":
            value = str(rng.randrange(1_000_000, 10_000_000))
        else:
            value = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        if value not in known:
            known.add(value)
            yield value


class Niah:
    """One prompt of a needle task."""

    def __init__(self, draws: Draws) -> None:
        task, rng = draws.task, draws.rng()
        self.draws, self.task = draws, task
        keys, values = drawn(rng, task.keys), drawn(rng, task.values)
        pairs = {next(keys): [next(values) for _ in range(task.per_key)] for _ in range(task.needles)}
        asked = rng.sample([*pairs], task.asked)
        self.needles = [needle_of(task, key, value) for key, every in pairs.items() for value in every]
        rng.shuffle(self.needles)
        self.taken = {*pairs, *(value for every in pairs.values() for value in every)}
        self.query = listed(asked)
        self.references = [value for key in asked for value in pairs[key]]
        self.answer = f" {listed(self.references)}"
        self.least = len(self.needles)
        self.lines: list[str] = []  # needles that nobody asks for

    def text(self, size: int, extra: int = 0) -> Text:
        """Return the text of so many lines or sentences."""
        context = {"noise": self.noise, "text": self.prose, "needles": self.others}[self.task.haystack](size, extra)
        before, behind, prefix = niah_parts(self.task, self.query)
        return Text(before, context, behind, prefix)

    def noise(self, size: int, extra: int) -> str:
        tail = [beginning(NOISE, extra, self.draws.count)] if extra else []
        return self.among([NOISE] * size, tail)

    def prose(self, size: int, extra: int) -> str:
        sentences = self.draws.sentences(size + 1)
        parts = [*sentences[:size], beginning(sentences[size], extra, self.draws.count) if extra else ""]
        parts = [*filter(None, parts)]
        depths = sorted(self.draws.rng("depths").sample(DEPTHS, len(self.needles)))
        for depth, needle in reversed([*zip(depths, self.needles, strict=True)]):
            parts.insert(len(parts) * depth // 100 if depth < 100 else len(parts), needle)
        return self.draws.joiner.join(parts)

    def others(self, size: int, extra: int) -> str:
        """Return lines of needles, some of them drawn again, longer or shorter, until all have `extra` tokens more."""
        while len(self.lines) <= size:
            self.lines.append(next(self.candidates(len(self.lines))))
        lines, count = self.lines[:size], self.draws.count
        if 2 * extra > (another := count("\n" + self.lines[size])):  # one more, and shorter ones
            lines.append(self.lines[size])
            extra -= another
        for i in range(len(lines) if extra else 0):
            now = count(lines[i])
            others = {count(line) - now: line for _, line in zip(range(REDRAWN), self.candidates(i), strict=False)}
            nearest = min(others, key=lambda more: (abs(extra - more), more))
            lines[i] = others[nearest]
            extra -= nearest
            if not extra:
                break
        return self.among(lines, [])

    def candidates(self, line: int) -> Iterator[str]:
        """Yield needles that could stand in a line, none with a key or value of those that are asked for."""
        rng = self.draws.rng(f"line {line}")
        for key, value in zip(drawn(rng, self.task.keys), drawn(rng, self.task.values), strict=True):
            if not {key, value} & self.taken:
                yield needle_of(self.task, key, value)

    def among(self, lines: list[str], tail: list[str]) -> str:
        """Return the needles among lines, each in front of one that is drawn; `tail` behind all."""
        places = sorted(self.draws.rng("places").sample(range(len(lines)), len(self.needles)), reverse=True)
        out = [*lines]
        for place, needle in zip(places, self.needles, strict=True):
            out.insert(place, needle)
        return "\n".join([*out, *tail])
