"""Generated English prose: seeded, grammatical, never the same sentence twice, as long as wanted, free of digits and of needle cities.

A document draws a cast of people, each with a trade, a place and a belonging that stay theirs, so that what is said
late agrees with what was said early.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .vocabulary import (
    ADJECTIVES,
    ADVERBS,
    FIRST_NAMES,
    OPINIONS,
    PLACES,
    REASONS,
    SURNAMES,
    THINGS,
    TIMES,
    TRADES,
    VERBS,
    WEATHER,
)


@dataclass(frozen=True)
class Person:
    name: str
    trade: str
    place: str
    thing: str


def article(phrase: str) -> str:
    """Put `a` or `an` before a phrase."""
    sounds_like_consonant = phrase.startswith(("use", "uni", "one"))
    return f"an {phrase}" if phrase[0] in "aeiou" and not sounds_like_consonant else f"a {phrase}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def cast(rng: random.Random, size: int = 16) -> list[Person]:
    """Draw people with distinct first names, surnames and belongings."""
    draw = [rng.sample(words, size) for words in (FIRST_NAMES, SURNAMES, TRADES, PLACES, THINGS)]
    return [
        Person(f"{first} {last}", trade, place, thing) for first, last, trade, place, thing in zip(*draw, strict=True)
    ]


def sentence(rng: random.Random, people: list[Person]) -> str:
    """Write one sentence about the cast."""
    one, two = rng.sample(people, 2)
    short = one.name.split()[0]
    thing = f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)}"
    place, time, verb, reason = rng.choice(PLACES), rng.choice(TIMES), rng.choice(VERBS), rng.choice(REASONS)
    opinion, adverb, weather = rng.choice(OPINIONS), rng.choice(ADVERBS), rng.choice(WEATHER)
    forms = (
        f"{one.name} {adverb} {verb} {article(thing)} near {place} {reason}.",
        f"{capital(time)}, when {weather}, {short} {verb} {article(thing)} at {place}.",
        f"{capital(time)} {one.name}, the {one.trade}, met {two.name} at {place} and they talked about the {thing}.",
        f'"It was {opinion}," said {one.name}, and {adverb} {verb} the {thing}.',
        f"The {one.trade} {adverb} walked from {one.place} to {place}, where {two.name} {verb} {article(thing)}.",
        f"Everybody at {one.place} knew that {one.name} still owned the {one.thing}, and that {two.name} had {adverb} "
        f"asked for it {time}.",
        f"In the opinion of {two.name}, the {thing} that {short} {verb} {time} was {opinion}.",
        f"{capital(weather)}, and the {one.trade} {verb} the {thing} {reason}.",
        f"{one.name} had been {article(one.trade)} for many years, and {time} the people of {place} {verb} "
        f"{article(thing)} to remember it.",
        f"If {two.name} had not {adverb} gone to {place} {time}, the {thing} would have been lost.",
        f"Neither {one.name} nor {two.name} {verb} the {thing} that stood at {place}.",
        f"There was {article(thing)} at {place}, but the {two.trade} {adverb} {verb} another {reason}.",
    )
    return rng.choice(forms)


def prose(rng: random.Random) -> Iterator[str]:
    """Yield sentences without end, none of them twice."""
    people = cast(rng)
    said: set[str] = set()
    while True:
        text = sentence(rng, people)
        if text not in said:
            said.add(text)
            yield text
