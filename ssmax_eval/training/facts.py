"""Training facts: statements and questions in the needle's own words, about cities that the probe's held-out ones are not."""

import random
import string
import uuid
from dataclasses import dataclass

from ..data.needles import (
    RECALL_CITIES,
    RECALL_VALUES,
    choice_fact,
    choice_question,
    draw_values,
    question,
    recall_fact,
    recall_question,
    statement,
)
from ..data.vocabulary import CHOICES, CITIES, HELD_OUT_CITIES
from .recipes import Recipe

TRAIN_CITIES = [city for city in CITIES if city not in HELD_OUT_CITIES]
OTHER_PHRASES = ("secret", "favourite", "lucky", "official", "hidden", "first", "old", "new", "true", "private")
OTHER_KINDS = ("code", "key", "name", "password", "address", "label")
ONSETS = "b br c ch cl d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z".split()
VOWELS = "a e i o u ai au ea ei ia io ou".split()
CODAS = ["", "", "", "k", "l", "m", "n", "nd", "r", "rn", "s", "st", "t", "v", "x"]


@dataclass(frozen=True)
class Fact:
    """A statement and its question; `said` is how much of the statement comes before its value, gap what follows the question."""

    statement: str
    said: str
    question: str
    gap: str
    value: str
    close: str


def invented_name(rng: random.Random) -> str:
    """Return a made-up name of two or three syllables, no city's."""
    while True:
        parts = [rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((2, 2, 3)))]
        if (name := "".join(parts).capitalize()) not in CITIES:
            return name


def draw_facts(rng: random.Random, recipe: Recipe, count: int) -> list[Fact]:
    """Draw facts about distinct subjects."""
    if recipe.task == "recall":
        cities = rng.sample(RECALL_CITIES, min(count, len(RECALL_CITIES)))
        values = [rng.choice(RECALL_VALUES) for _ in cities]
        return [
            Fact(recall_fact(city, value), "", recall_question(city), "", value, "")
            for city, value in zip(cities, values, strict=True)
        ]
    if recipe.task == "choice":
        return [chosen(city, rng.choice(CHOICES)) for city in rng.sample(TRAIN_CITIES, min(count, len(TRAIN_CITIES)))]
    subjects: dict[str, None] = {}
    while len(subjects) < min(count, len(TRAIN_CITIES)):
        subjects[invented_name(rng) if rng.random() < recipe.invented else rng.choice(TRAIN_CITIES)] = None
    return [natural(rng, recipe, subject) for subject in subjects]


def chosen(city: str, value: str) -> Fact:
    """Write the fact of task choice."""
    text = choice_fact(city, value)
    return Fact(text, text[: text.rindex(value)], choice_question(city), " ", value, ".")


def natural(rng: random.Random, recipe: Recipe, subject: str) -> Fact:
    """Write one fact in words, its kind of value and its phrasing drawn from the recipe's shares."""
    draw = rng.random()
    if draw < recipe.uuids:
        kind, value = "uuid", str(uuid.UUID(int=rng.getrandbits(128), version=4))
    elif draw < recipe.uuids + recipe.words:
        kind, value = "word", draw_values(rng, "word", 1)[0] if rng.random() < 0.5 else made_up_word(rng)
    else:
        kind, value = "number", "".join(rng.choices(string.digits, k=rng.randint(*recipe.digits)))
    what = "special magic"
    if rng.random() < recipe.phrasings:
        what, kind = rng.choice(OTHER_PHRASES), rng.choice((kind, *OTHER_KINDS))
    text = statement(subject, kind, value, what)
    return Fact(text, text[: text.rindex(value)], question(subject, kind, what), " ", value, ".")


def made_up_word(rng: random.Random) -> str:
    return f"{invented_name(rng).lower()}-{invented_name(rng).lower()}"
