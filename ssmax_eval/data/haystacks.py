"""Haystacks: where the text around a needle comes from. Each yields sentences; none knows tokens."""

import itertools
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import UserError, nearest
from .prose import capital, prose
from .reading import bible, dataset_texts, files_in_blocks, in_blocks, own_name, read_blocks
from .sentences import Sentences
from .vocabulary import ADJECTIVES, ADVERBS, PLACES, THINGS, TRADES

REPEATED = (  # RULER's filler
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
GENERATED = ("text", "noise", "repeat")
NOISE_WORDS = sorted(set(" ".join([*ADJECTIVES, *ADVERBS, *PLACES, *THINGS, *TRADES]).split()))


class Haystack(Protocol):
    """A source of filler text. name and sha256 identify it in a run; anchor and joiner say what stands between sentences."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def anchor(self) -> str: ...
    @property
    def joiner(self) -> str: ...

    def sentences(self, rng: random.Random) -> Iterator[str]:
        """Yield sentences without end, from a place that rng draws."""
        ...

    def start(self, rng: random.Random) -> int | None:
        """Return the sentence of the source that rng draws to begin with; None if the text is made anew each time."""
        ...


@dataclass(frozen=True)
class Generated:
    """Filler made here: `text` (prose), `noise` (random words), `repeat` (five sentences over and over)."""

    name: str = "text"
    sha256: None = None
    anchor: str = "."
    joiner: str = " "

    def sentences(self, rng: random.Random) -> Iterator[str]:
        if self.name == "text":
            return prose(rng)
        if self.name == "noise":
            return iter(lambda: capital(" ".join(rng.choices(NOISE_WORDS, k=rng.randint(5, 15)))) + ".", None)
        start = rng.randrange(len(REPEATED))
        return itertools.islice(itertools.cycle(REPEATED), start, None)

    def start(self, rng: random.Random) -> None:
        return None


class Document:
    """Filler read from somewhere; a trial starts at a drawn sentence and the text starts over where it ends.

    text: the whole, or its blocks in order. any_script: know the sentence ends of every script (Sentences). Raises UserError
    for an empty text.
    """

    anchor = "."
    joiner = " "

    def __init__(self, name: str, text: str | Iterable[str], any_script: bool = False) -> None:
        self.name = name
        self.every = Sentences(in_blocks(text) if isinstance(text, str) else text, any_script)
        if not self.every.text:
            raise UserError(f"haystack {name!r}: it holds no text; give a file with at least a few sentences")

    @property
    def sha256(self) -> str:
        return self.every.sha256

    def sentences(self, rng: random.Random) -> Iterator[str]:
        first = self.start(rng)
        return (self.every[i % len(self.every)] for i in itertools.count(first))

    def start(self, rng: random.Random) -> int:
        return rng.randrange(len(self.every))


def haystack(reference: str, any_script: bool = False) -> Haystack:
    """Return the haystack of `text`, `noise`, `repeat`, `bible`, a text file or directory, or `hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]`.

    any_script: know the sentence ends of every script. Raises UserError.
    """
    if reference in GENERATED:
        return Generated(reference)
    if reference == "bible":
        return Document("bible", bible(), any_script)
    if reference.startswith("hf:"):
        return Document(reference, "\n".join(dataset_texts(reference)), any_script)
    if not reference:
        raise UserError("haystack '': allowed are text, noise, repeat, bible, hf:DATASET, or a path")
    path = Path(os.path.expanduser(reference))
    if path.is_dir():
        return Document(own_name(path.resolve().name), files_in_blocks(path, "\n"), any_script)
    if not path.is_file():
        raise UserError(
            f"haystack {reference!r}: no such file; allowed are text, noise, repeat, bible, hf:DATASET, or a path"
            + nearest(reference, [*GENERATED, "bible"])
        )
    return Document(own_name(path.name), read_blocks(path, reference), any_script)
