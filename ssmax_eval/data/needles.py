"""Needles: the facts, questions and answers of each task, as text. One generator state decides all of a trial."""

import random
import string
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..errors import UserError, nearest
from .haystacks import Haystack
from .vocabulary import CHOICES, CITIES, VALUE_ADJECTIVES, VALUE_NOUNS

TASKS = ("single", "multikey", "multivalue", "multiquery", "digits", "recall", "choice")
LISTED = ("multivalue", "multiquery")  # their answers are several values
ASKS = ("one", "all")
VALUES = ("number", "word", "uuid")
# task recall: few enough that a tokenizer can hold every fact as one token, and a tiny model learns them in seconds
RECALL_CITIES = CITIES[:16]
RECALL_VALUES = "01234567"
FAR_OFF = 5  # percent of the context: a needle that stands further from its depth than this is said


@dataclass(frozen=True)
class Draw:
    """One trial as text. facts[0] stands at the tested depth, the rest at drawn places; values are the facts' values.

    ordered: the facts that are asked for are numbered by where they stand, so the answer lists them in reading order.
    question ends where the answer begins, gap stands between them. later: how often facts[0] has its value's words once more behind
    the value itself.
    """

    facts: list[str]
    values: list[str]
    question: str
    answer: str
    ordered: bool = False
    gap: str = " "
    later: int = 0


class Asked(Protocol):
    """What a prompt asks for: a task of ours (Needle), or a needle of one's own (own.OwnNeedle).

    task, value, needles: what its rows say of it. has_others: whether other facts are part of the haystack. is_indirect:
    whether the question has other words than the fact, so that a short prompt's score is what long ones are held against.
    asks_all: whether each fact of a haystack is asked for, by a prompt of its own. named: the task as rows name it.
    """

    @property
    def task(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def needles(self) -> int: ...
    @property
    def has_others(self) -> bool: ...
    @property
    def is_indirect(self) -> bool: ...
    @property
    def asks_all(self) -> bool: ...
    @property
    def named(self) -> str: ...

    def draw(self, rng: random.Random) -> Draw:
        """Draw one prompt of plan 1."""
        ...

    def draw_in_trial(self, trial: random.Random, cell: random.Random) -> Draw:
        """Draw one prompt of plan 2: the haystack's facts are the trial's, what is asked for is the cell's."""
        ...

    def spoken(self) -> dict[str, str]:
        """Return keys and values that can be drawn, each in a fact of its own."""
        ...


@dataclass(frozen=True)
class Needle:
    """A task's parameters: value is number (7 digits), word or uuid; needles counts the facts of the multi tasks and of choice.

    ask: one, or of multikey all: a fact at each depth of the grid, in one haystack, and a question about each.
    """

    task: str = "single"
    value: str = "number"
    needles: int = 4
    ask: str = "one"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"task {self.task!r}: allowed are {', '.join(TASKS)}{nearest(self.task, TASKS)}")
        if self.value not in VALUES:
            raise UserError(f"value {self.value!r}: allowed are {', '.join(VALUES)}{nearest(self.value, VALUES)}")
        if not 1 <= self.needles <= len(CITIES):  # a task that takes one does not excuse it
            raise UserError(f"needles {self.needles}: allowed are 2 to {len(CITIES)}")
        if self.ask not in ASKS:
            raise UserError(f"ask {self.ask!r}: allowed are one and all")
        if self.asks_all and self.task != "multikey":
            raise UserError(f"ask all: task {self.task} has one question a prompt; allowed with task multikey alone")
        if self.task in ("single", "digits", "recall"):
            # what a task does not use must not tell its runs apart
            object.__setattr__(self, "needles", 1)
            object.__setattr__(self, "value", self.value if self.task == "single" else "number")
            return
        most = len(CITIES)
        if self.task == "choice":
            object.__setattr__(self, "value", "word")
            most = len(CHOICES)  # no two cities choose the same
        if not 2 <= self.needles <= most:
            raise UserError(f"needles {self.needles}: allowed are 2 to {most}")

    @property
    def is_indirect(self) -> bool:
        """Whether the question has other words than the fact."""
        return False

    @property
    def asks_all(self) -> bool:
        """Whether each fact of a haystack is asked for, by a prompt of its own."""
        return self.ask == "all"

    @property
    def named(self) -> str:
        """The task as rows name it: facts that are all asked for distract each other, and stand elsewhere than drawn ones."""
        return f"{self.task}-all" if self.asks_all else self.task

    @property
    def has_others(self) -> bool:
        """Whether other cities' facts are part of the haystack, beside the one that is asked for."""
        return self.task in ("multikey", "choice")

    def fact(self, city: str, value: str) -> str:
        """Write a fact about a city in the task's words."""
        return choice_fact(city, value) if self.task == "choice" else statement(city, self.value, value)

    def asked(self, city: str) -> str:
        """Write the question about a city in the task's words, up to where the value follows."""
        return choice_question(city) if self.task == "choice" else question(city, self.value)

    def drawn(self, rng: random.Random, count: int) -> list[str]:
        """Draw distinct values."""
        return rng.sample(CHOICES, count) if self.task == "choice" else draw_values(rng, self.value, count)

    def draw_in_trial(self, trial: random.Random, cell: random.Random) -> Draw:
        """Draw one prompt of plan 2: what is asked for is the cell's own, what is haystack is shared by the whole trial.

        Haystack are the other cities' facts of multikey and choice, and which letter of ABCDigits is not in it.
        """
        if self.task == "digits":
            return digits(trial, cell)
        if not self.has_others:
            return self.draw(cell)
        others = trial.sample(CITIES, self.needles - 1)
        told = self.drawn(trial, self.needles - 1)
        city = cell.choice([city for city in CITIES if city not in others])
        value = next(value for value in iter(lambda: self.drawn(cell, 1)[0], "") if value not in told)
        pairs = zip([city, *others], [value, *told], strict=True)
        return Draw([self.fact(*pair) for pair in pairs], [value, *told], self.asked(city), value)

    def draw_all(self, trial: random.Random, asked: int) -> Draw:
        """Draw a trial's facts, and the question about one of them."""
        cities = trial.sample(CITIES, self.needles)
        values = self.drawn(trial, self.needles)
        facts = [self.fact(*pair) for pair in zip(cities, values, strict=True)]
        return Draw(facts, values, self.asked(cities[asked]), values[asked])

    def spoken(self) -> dict[str, str]:
        """Return every key that the task can ask for, and values of all words and digits that it can, each in a fact of its own."""
        if self.task == "recall":
            return {city: recall_fact(city, "0") for city in RECALL_CITIES} | {
                value: recall_fact("Tokyo", value) for value in RECALL_VALUES
            }
        if self.task == "digits":
            keys = {letter: f"{letter}=102345" for letter in string.ascii_uppercase}
            return keys | {value: f"A={value}" for value in ("102345", "986708")}
        if self.task == "choice":
            return {city: choice_fact(city, CHOICES[0]) for city in CITIES} | {
                value: choice_fact("Tokyo", value) for value in CHOICES
            }
        values = {
            "number": ["1023456", "7890123"],
            "word": [f"{adjective}-{VALUE_NOUNS[0]}" for adjective in VALUE_ADJECTIVES]
            + [f"{VALUE_ADJECTIVES[0]}-{noun}" for noun in VALUE_NOUNS],
            "uuid": ["01234567-89ab-4cde-af01-23456789abcd"],
        }[self.value]
        facts = {city: statement(city, self.value, values[0]) for city in CITIES}
        return facts | {value: statement("Tokyo", self.value, value) for value in values}

    def draw(self, rng: random.Random) -> Draw:
        """Draw cities and values for one trial."""
        if self.task == "digits":
            return digits(rng, rng)
        if self.task == "recall":
            city, value = rng.choice(RECALL_CITIES), rng.choice(RECALL_VALUES)
            return Draw([recall_fact(city, value)], [value], recall_question(city), value, gap="")
        kind = self.value
        count = 1 if self.task == "single" else self.needles
        cities = rng.sample(CITIES, count)
        values = self.drawn(rng, count)
        if self.task in ("single", "multikey", "choice"):
            facts = [self.fact(*pair) for pair in zip(cities, values, strict=True)]
            return Draw(facts, values, self.asked(cities[0]), values[0])
        if self.task == "multivalue":
            facts = [f"One of the special magic {cities[0]} {kind}s is: {value}." for value in values]
            ask = f"What are the special magic {cities[0]} {kind}s? The special magic {cities[0]} {kind}s are:"
            return Draw(facts, values, ask, ", ".join(values), ordered=True)
        facts = [statement(city, kind, value) for city, value in zip(cities, values, strict=True)]
        named = f"special magic {', '.join(cities[:-1])} and {cities[-1]} {kind}s"
        return Draw(facts, values, f"What are the {named}? The {named} are:", ", ".join(values))


def statement(subject: str, kind: str, value: str, what: str = "special magic") -> str:
    """Write the paper's needle: `The special magic Tokyo number is: 8106422.`"""
    return f"The {what} {subject} {kind} is: {value}."


def question(subject: str, kind: str, what: str = "special magic") -> str:
    """Write the question that the needle answers, up to where the value follows."""
    return f"What is the {what} {subject} {kind}? The {what} {subject} {kind} is:"


def recall_fact(city: str, value: str) -> str:
    """Write the fact of task recall: `Tokyo=3`."""
    return f"{city}={value}"


def recall_question(city: str) -> str:
    return f"{city}?"


def choice_fact(city: str, value: str) -> str:
    """Write the fact of task choice, in words that no other has: `The people of Tokyo chose gold.`"""
    return f"The people of {city} chose {value}."


def choice_question(city: str) -> str:
    return f"What did the people of {city} choose? The people of {city} chose"


def draw_values(rng: random.Random, kind: str, count: int) -> list[str]:
    """Draw distinct values: 7-digit numbers, adjective-noun words (as RULER's), or version 4 UUIDs."""
    values: dict[str, None] = {}
    while len(values) < count:
        if kind == "number":
            value = str(rng.randrange(1_000_000, 10_000_000))
        elif kind == "word":
            value = f"{rng.choice(VALUE_ADJECTIVES)}-{rng.choice(VALUE_NOUNS)}"
        else:
            value = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        values[value] = None
    return list(values)


def digits(keys: random.Random, values: random.Random) -> Draw:
    """Draw one ABCDigits prompt: the line `L=dddddd` stands once, and `L=` asks for it."""
    letter = keys.choice(string.ascii_uppercase)
    value = str(values.randrange(100_000, 1_000_000))
    return Draw([f"{letter}={value}"], [value], f"{letter}=", value, gap="")


@dataclass(frozen=True)
class DigitLines:
    """The haystack of ABCDigits: lines `L=dddddd` of the other 25 letters, each with one value, shuffled again and again.

    The number of keys stays 26 as the length grows; the author's construction is not published, this one is ours.
    """

    asked: str
    name: str = "digits"
    sha256: None = None
    anchor: str = "0"
    joiner: str = "\n"

    def sentences(self, rng: random.Random) -> Iterator[str]:
        letters = [letter for letter in string.ascii_uppercase if letter != self.asked]
        values = {letter: rng.randrange(100_000, 1_000_000) for letter in letters}
        while True:
            for letter in rng.sample(letters, len(letters)):
                yield f"{letter}={values[letter]}"

    def start(self, rng: random.Random) -> None:
        return None


def haystack_for(draw: Draw, needle: Asked, given: Haystack) -> Haystack:
    """Return the haystack of a trial: the given one, but for ABCDigits, which is its own."""
    return DigitLines(draw.question[0]) if needle.task == "digits" else given
