"""A needle of one's own: a fact, its question and its answer, in any script."""

import itertools
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import UserError, nearest, refuse_half_characters
from .encoding import starts_of
from .needles import VALUES, Draw, draw_values
from .vocabulary import CITIES

KEY, VALUE = "{key}", "{value}"
SLOT = re.compile(r"\{([^{}]*)\}")
UNSPACED = "WF"  # East Asian width of scripts that put no space between a question and what continues it
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class OwnNeedle:
    """A fact, its question and its answer, with the slots {key} and {value}.

    facts, questions: phrasings, one of each drawn for every prompt. answer: what has to follow the question. keys, values:
    pairs, as the fact says it and as the question (the answer) does; values can be number, word or uuid, drawn anew each time.
    distractors: facts of other keys and values, which are part of the haystack. implied: the fact need not hold the answer's
    words. language: for the record. Raises UserError for what cannot be asked.
    """

    name: str
    facts: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    keys: Pairs = ()
    values: str | Pairs = ""
    distractors: tuple[str, ...] = ()
    language: str = ""
    implied: bool = False

    def __post_init__(self) -> None:
        own_values = () if isinstance(self.values, str) else self.values
        for text in (
            *self.facts,
            *self.questions,
            self.answer,
            *self.distractors,
            *itertools.chain(*self.keys, *own_values),
        ):
            refuse_half_characters("needle", text)
        self._check_slots()
        uses_value = any(VALUE in text for text in (*self.facts, *self.distractors))
        if any(KEY in text for text in (*self.facts, *self.questions, *self.distractors)):
            object.__setattr__(self, "keys", self.keys or tuple((city, city) for city in CITIES))
        elif self.keys:
            raise UserError(
                f"needle {self.facts[0]!r}: keys are given, and {KEY} is not in it; write it, or leave them out"
            )
        if uses_value:
            object.__setattr__(self, "values", self.values or "number")
        elif self.values:
            raise UserError(
                f"needle {self.facts[0]!r}: values are given, and {VALUE} is missing; write it where the value stands"
            )
        if isinstance(self.values, str) and self.values and self.values not in VALUES:
            raise UserError(
                f"values {self.values!r}: allowed are a list, or {', '.join(VALUES)}{nearest(self.values, VALUES)}"
            )
        for slot, what, drawn in ((KEY, "keys", self.keys), (VALUE, "values", self.values)):
            wanted = 1 + sum(slot in text for text in self.distractors)
            if not isinstance(drawn, str) and drawn and len(drawn) < wanted:
                raise UserError(
                    f"{what}: {len(drawn)} are too few for the needle and its distractors; give at least {wanted}"
                )
        if self.keys and len({asked for _, asked in self.keys}) <= sum(KEY in text for text in self.distractors):
            raise UserError(
                f"keys: {len(self.keys)}, but asked for in fewer words, are too few for the needle and its distractors: two facts "
                "would answer one question; give more"
            )
        self._check_answer()

    def _check_slots(self) -> None:
        if not self.facts or not self.questions:
            raise UserError("needle: it needs a fact and a question; give --needle and --question, or both in the file")
        for what, texts in (
            ("needle", self.facts),
            ("question", self.questions),
            ("answer", (self.answer,)),
            ("distractor", self.distractors),
        ):
            for text in texts:
                if not text.strip():
                    raise UserError(f"{what} '': it is empty; write it")
                allowed = (KEY,) if what == "question" else (KEY, VALUE)
                if unknown := next((slot for slot in SLOT.findall(text) if f"{{{slot}}}" not in allowed), None):
                    why = "which would give the answer away; " if f"{{{unknown}}}" == VALUE else ""
                    raise UserError(f"{what} {text!r}: slot {{{unknown}}}: {why}allowed: {' and '.join(allowed)}")
        for fact in self.facts:
            if VALUE in self.answer and VALUE not in fact:
                raise UserError(
                    f"needle {fact!r}: {VALUE} is missing, and the answer is made of it; write it where the value stands"
                )
            if KEY not in fact and any(KEY in text for text in (*self.questions, self.answer)):
                raise UserError(
                    f"needle {fact!r}: {KEY} is missing, and the question is about it; write it into the needle"
                )

    def _check_answer(self) -> None:
        for question, (key, value, fact) in itertools.product(self.questions, self._every()):
            said, answer = filled(fact, key[0], value[0]), self._answer(key, value)
            if not self.implied and not holds(said, answer):
                raise UserError(
                    f"answer {answer!r}: needle {said!r} does not hold it; write it so, or say in a needle file that it is "
                    "implied (implied: true)"
                )
            if holds(asked := filled(question, key[1]), answer):
                raise UserError(f"question {asked!r}: it holds the answer {answer!r}; ask without it")

    def answers(self) -> set[str]:
        """Return answers of every key and value."""
        return {self._answer(key, value) for key, value, _ in self._every()}

    def _every(self) -> Iterator[tuple[tuple[str, str], tuple[str, str], str]]:
        """Yield all keys and all values, each once or more, in every fact."""
        keys = self.keys or (("", ""),)
        values = (("", ""),) if not self.values else self._some() if isinstance(self.values, str) else self.values
        pairs = {**{(key, values[0]): 0 for key in keys}, **{(keys[0], value): 0 for value in values}}
        for (key, value), fact in itertools.product(pairs, self.facts):
            yield key, value, fact

    def _some(self) -> Pairs:
        assert isinstance(self.values, str)
        return tuple((value, value) for value in draw_values(random.Random(0), self.values, 2))

    def _answer(self, key: tuple[str, str], value: tuple[str, str]) -> str:
        return filled(self.answer, key[1], value[1])

    @property
    def task(self) -> str:
        """Its name in rows."""
        return self.name

    @property
    def value(self) -> str:
        """What is hidden: number, word, uuid, or text."""
        return self.values if isinstance(self.values, str) and self.values else "text"

    @property
    def needles(self) -> int:
        """How many facts a prompt holds."""
        return 1 + len(self.distractors)

    @property
    def has_others(self) -> bool:
        return bool(self.distractors)

    @property
    def asks_all(self) -> bool:
        return False

    @property
    def named(self) -> str:
        return self.task

    @property
    def is_indirect(self) -> bool:
        """Whether the question has other words than the fact, so that a model may not know the answer however short the prompt."""
        pairs = [*self.keys, *(() if isinstance(self.values, str) else self.values)]
        return self.implied or any(here != there for here, there in pairs)

    def draw(self, rng: random.Random) -> Draw:
        """Draw one prompt."""
        return self.draw_in_trial(rng, rng)

    def draw_in_trial(self, trial: random.Random, cell: random.Random) -> Draw:
        """Draw one prompt: the distractors are the trial's, what is asked for, and in which words, is the cell's."""
        other_keys = trial.sample(self.keys, sum(KEY in text for text in self.distractors))
        other_values = self._values(trial, sum(VALUE in text for text in self.distractors), [])
        told = {asked for _, asked in other_keys}  # two keys may be asked for in the same words
        key = cell.choice([each for each in self.keys if each[1] not in told]) if self.keys else ("", "")
        value = self._values(cell, 1, other_values)[0] if self.values else ("", "")
        keys, values = iter(other_keys), iter(other_values)
        others = [
            filled(text, next(keys)[0] if KEY in text else "", next(values)[0] if VALUE in text else "")
            for text in self.distractors
        ]
        said = cell.choice(self.facts)
        fact = filled(said, key[0], value[0])
        question, answer = filled(cell.choice(self.questions), key[1]), self._answer(key, value)
        shown, later = self._shown(said, key, value)
        return Draw([fact, *others], [shown, *others], question, answer, gap=gap_after(question), later=later)

    def _shown(self, said: str, key: tuple[str, str], value: tuple[str, str]) -> tuple[str, int]:
        """Return what a fact shows of the answer, and how often it has that once more behind the place that its slot gives it.

        Of an answer that is implied it is what it is implied by.
        """
        fact, answer = filled(said, key[0], value[0]), self._answer(key, value)
        shown = answer if holds(fact, answer) else value[0] or fact
        places = starts_of(shown, fact)
        if len(places) < 2:
            return shown, 0
        slots = {slot for slot in (KEY, VALUE) if slot in self.answer} or {VALUE}
        spans = slot_spans(said, key[0], value[0], slots)
        of_words = [match.start() for match in re.finditer(word(shown), fact, re.ASCII)] or places
        inside = [at for at in places if any(at < end and start < at + len(shown) for start, end in spans)]
        likely = [at for at in inside if at in of_words] or inside or of_words
        return shown, len(places) - 1 - places.index(likely[-1])

    @property
    def is_told_anew(self) -> bool:
        """Whether its prompts, or where their values stand, are others than they were: what was ambiguous was drawn and marked."""
        same_question = len({asked for _, asked in self.keys}) < len(self.keys)
        told_twice = any(self._shown(fact, key, value)[1] for key, value, fact in self._every())
        return (bool(self.distractors) and same_question) or told_twice

    def _values(self, rng: random.Random, count: int, told: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Draw distinct values that are none of those told."""
        if not isinstance(self.values, str):
            return rng.sample([each for each in self.values if each not in told], count)
        if not count:
            return []
        drawn = iter(lambda: draw_values(rng, self.value, count), None)
        return next([(each, each) for each in some] for some in drawn if not {*some} & {each for each, _ in told})

    def spoken(self) -> dict[str, str]:
        """Return keys and values that can be drawn, each in a fact of its own; the fact where there are none."""
        out: dict[str, str] = {}
        for key, value, fact in self._every():
            said = filled(fact, key[0], value[0])
            for word in (key[0], value[0]):
                out.setdefault(word, said)
        out.pop("", None)
        return out or {fact: fact for fact in self.facts}


def word(answer: str) -> str:
    """Return a pattern for an answer as words of its own."""
    return rf"(?<!\w){re.escape(answer)}(?!\w)"


def holds(fact: str, answer: str) -> bool:
    """Tell whether an answer stands in a fact: "art" not in "starts"; other scripts join words, so there anywhere."""
    return re.search(word(answer), fact, re.ASCII) is not None if answer.isascii() else answer in fact


def says(text: str, answer: str) -> bool:
    """Tell whether a text that was written says an answer: it begins with it, or holds it as words of its own.

    What greedy decoding writes begins with the answer exactly where forced scoring finds it right.
    """
    return text.lstrip().startswith(answer.lstrip()) or holds(text, answer)


def slot_spans(text: str, key: str, value: str, slots: set[str]) -> list[tuple[int, int]]:
    """Return where these slots of a text stand when it is filled, [start, end) in characters."""
    spans, at = [], 0
    for part in re.split(r"(\{key\}|\{value\})", text):
        size = len(filled(part, key, value))
        if part in slots:
            spans.append((at, at + size))
        at += size
    return spans


def filled(text: str, key: str, value: str = "") -> str:
    """Return a text with its slots filled."""
    return text.replace(KEY, key).replace(VALUE, value)


def gap_after(question: str) -> str:
    """Return what stands between a question and its answer: a space, but not where its script has none, or white space is there."""
    last = question[-1:]
    return "" if last.isspace() or unicodedata.east_asian_width(last or " ") in UNSPACED else " "
