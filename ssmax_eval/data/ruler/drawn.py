"""What one prompt of a task draws, as a text of any size: what grows with it, and what adds the last tokens that are missing."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from .tasks import Task

Count = Callable[[str], int]  # tokens of a text where it stands behind another


@dataclass(frozen=True)
class Text:
    """A prompt's text: what stands before the context, it, what stands behind it, and the words that the answer follows."""

    before: str
    context: str
    behind: str
    prefix: str


class Drawn(Protocol):
    """All that a prompt draws.

    references: what its answer has to hold. answer: it written out, as it follows the prompt's last words. least: its
    smallest size.
    """

    references: list[str]
    answer: str
    least: int

    def text(self, size: int, extra: int = 0) -> Text:
        """Return the text of so much haystack: lines, sentences or words, with about `extra` tokens more."""
        ...


@dataclass(frozen=True)
class Draws:
    """What a task draws from.

    seed: decides all that is this prompt's. sentences: of the prose that its trial has for a haystack, at least so many.
    joiner: what stands between them. words: a word list, for cwe. count: tokens of a text. context_length: of the whole prompt.
    """

    task: Task
    seed: str
    sentences: Callable[[int], list[str]]
    joiner: str
    count: Count
    context_length: int

    def rng(self, what: str = "") -> random.Random:
        """Return a generator of its own for one thing that is drawn, so that no other's draws change with the size."""
        return random.Random(f"{self.seed}/{what}")


def beginning(text: str, tokens: int, count: Count) -> str:
    """Return a beginning of a text that has so many tokens or, if none has, fewer: cut between words if that can be."""
    spaces = [i for i, character in enumerate(text) if character == " "]
    best = ""
    for places in (spaces, range(1, len(text))):
        low, high = 0, len(places)
        while low < high:  # the last place in front of which there are no more
            middle = (low + high) // 2
            if count(text[: places[middle]]) <= tokens:
                low = middle + 1
            else:
                high = middle
        if low:
            best = max(best, text[: places[low - 1]].rstrip(), key=count)
        if best and count(best) == tokens:
            break
    return best


def coins(total: int, costs: Iterable[int]) -> list[int] | None:
    """Return the fewest of the costs, each as often as it takes, that add up to a total; None for none."""
    every = sorted({cost for cost in costs if cost > 0}, reverse=True)
    ways: list[list[int] | None] = [[]]
    for part in range(1, total + 1):
        found = [[*way, cost] for cost in every if cost <= part and (way := ways[part - cost]) is not None]
        ways.append(min(found, key=len, default=None))
    return ways[total]
