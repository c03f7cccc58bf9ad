"""RULER's lists: the ten words of a list that come up most (cwe), and the three of a coded text (fwe)."""

import re
import string
from collections import Counter
from functools import cache

from ...errors import UserError
from ..reading import bible
from .drawn import Draws, Text, coins
from .niah import KEY_ADJECTIVES, KEY_NOUNS
from .tasks import ALPHA, COMMON, CWE, CWE_PREFIX, DOTS, FWE, FWE_PREFIX, SHORT, numbered

LETTERS = 6  # of a coded word
TOKENS_A_WORD = 50  # of the prompt, for each coded word there is
TRIED = 200  # words among which those are looked for that make a prompt's length come out
TAKEN = 6  # entries at most that others come in the place of, for that
FEWEST_CODED = 83  # words of a coded text: the first three behind the dots come more often than any other then


@cache
def words() -> tuple[str, ...]:
    """Return the words of lists, sorted: of the Bible's text those of 4 letters or more that come twice and are no names."""
    found = Counter(re.findall(r"[A-Za-z'’-]+", bible()))
    return tuple(
        sorted(
            word
            for word, times in found.items()
            if times > max(1, found[word.title()]) and len(word) > 3 and word.isalpha() and word.islower()
        )
    )


class Common:
    """One prompt of common words extraction.

    An example stands in front, as RULER has it; lm-eval leaves it out. A word or two come up once, where that makes the length.
    """

    def __init__(self, draws: Draws) -> None:
        rng = draws.rng()
        self.draws = draws
        self.repeats, self.others = (6, 1) if draws.context_length < SHORT else (30, 3)
        shown, repeats, others = (20, 3, 1) if draws.context_length < SHORT else (40, 10, 3)
        self.example = self.shown(rng.sample(words(), shown), repeats, others)
        self.words = [*words()]
        rng.shuffle(self.words)
        pairs = [f"{adjective}-{noun}" for adjective in KEY_ADJECTIVES for noun in KEY_NOUNS]
        rng.shuffle(pairs)
        self.words += pairs  # where a list is longer than there are words
        self.references = self.words[:COMMON]
        self.answer = f" {numbered(self.references)}"
        self.least = 1

    def shown(self, drawn: list[str], repeats: int, others: int) -> str:
        entries = drawn[:COMMON] * repeats + drawn[COMMON:] * others
        self.draws.rng("example").shuffle(entries)
        return f"{CWE.format(context=numbered(entries))} {CWE_PREFIX} {numbered(drawn[:COMMON])}\n"

    def text(self, size: int, extra: int = 0) -> Text:
        """Return the text of so many words beside the common ones."""
        if COMMON + size + TRIED > len(self.words):
            raise UserError(
                f"context length {self.draws.context_length}: task {self.draws.task.name} has words for shorter lists only; "
                "give a shorter one"
            )
        entries = self.references * self.repeats + self.words[COMMON : COMMON + size] * self.others
        if extra:
            entries = self.longer(entries, self.words[COMMON + size : COMMON + size + TRIED], extra)
        self.draws.rng("order").shuffle(entries)
        before, behind = CWE.split("{context}")
        return Text(self.example + before, numbered(entries), behind, CWE_PREFIX)

    def longer(self, entries: list[str], spare: list[str], extra: int) -> list[str]:
        """Return entries with about `extra` tokens more: further words, once each, in place of the last ones if need be."""
        number = len(entries) + 1
        cost: dict[int, list[str]] = {}
        for word in spare:
            cost.setdefault(self.draws.count(f" {number}. {word}"), []).append(word)
        for taken in range(0, min(TAKEN, len(entries)) + 1, self.others):
            left = entries[: len(entries) - taken]
            gone = sum(self.draws.count(f" {number}. {word}") for word in entries[len(left) :])
            found = coins(extra + gone, cost)
            if found is not None and all(found.count(each) <= len(cost[each]) for each in found):
                return [*left, *(cost[each].pop() for each in found)]
        return entries


class Frequent:
    """One prompt of frequent words extraction: words of six drawn letters, as often as a zeta distribution says."""

    def __init__(self, draws: Draws) -> None:
        rng = draws.rng()
        self.draws = draws
        coded: dict[str, None] = {}
        while len(coded) < max(6, draws.context_length // TOKENS_A_WORD):
            coded["".join(rng.choices(string.ascii_lowercase, k=LETTERS))] = None
        self.words = [DOTS, *[*coded][1:]]
        self.references = self.words[1:4]
        self.answer = f" {' '.join(self.references)}"
        self.least = FEWEST_CODED

    def text(self, size: int, extra: int = 0) -> Text:
        """Return the text of so many words, before each count is rounded down."""
        from scipy.special import zeta

        entries = [
            word for rank, word in enumerate(self.words, 1) for _ in range(int(size * rank**-ALPHA / zeta(ALPHA)))
        ]
        entries += self.longer(extra)
        self.draws.rng("order").shuffle(entries)
        before, behind = FWE.split("{context}")
        return Text(before, " ".join(entries), behind, FWE_PREFIX)

    def longer(self, extra: int) -> list[str]:
        """Return dots, and a rare word if need be, of about so many tokens: dots are what the question says to ignore."""
        dots = max(1, self.draws.count(f" {DOTS}"))
        rare = {
            self.draws.count(f" {word}"): word for word in self.words[5:]
        }  # not the fourth, which would come as often as the third
        for many in range(extra // dots, -1, -1):
            rest = extra - many * dots
            if not rest or rest in rare:
                return [DOTS] * many + ([rare[rest]] if rest else [])
        return [DOTS] * (extra // dots)
