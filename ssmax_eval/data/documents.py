"""Long documents for the loss: token windows of one length, from generated prose or from texts that are long enough."""

import hashlib
import logging
import os
import random
import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, groupby, islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import UserError, nearest
from .encoding import Encoder
from .prose import prose
from .reading import BLOCK, bible, dataset_texts, own_name, read_blocks, text_files
from .tokens import Tokens

SENTENCES_AT_FIRST = 64
SPARE_TOKENS = 64


@dataclass(frozen=True)
class Window:
    """A document of exactly the length asked for: where it comes from, and its token ids.

    prefix: how many of them, the first, are what the tokenizer puts in front of every text.
    """

    name: str
    ids: list[int] = field(repr=False)
    prefix: int = 0

    @property
    def sha256(self) -> str:
        return hashlib.sha256(struct.pack(f"<{len(self.ids)}i", *self.ids)).hexdigest()


@dataclass(frozen=True, eq=False)  # a file can change: one that was read again is another source
class Documents:
    """A source of documents: `text` (generated prose, a cast of its own in each), or what a haystack reference names.

    A directory's files are documents of their own. Files shorter than the length are left out, or with `pack` joined.
    """

    reference: str = "text"
    pack: bool = False

    @cached_property
    def texts(self) -> dict[str, bytes | bytearray]:
        """The texts by name, in UTF-8, read once; {} for prose, which is made as it is asked for."""
        path = Path(os.path.expanduser(self.reference))
        if not self.reference:
            raise UserError("text '': allowed are text, bible, hf:DATASET, a file or a directory")
        texts: dict[str, bytes | bytearray] = {}
        if self.reference == "bible":
            texts = {"bible": bible().encode()}
        elif self.reference.startswith("hf:"):
            texts = {str(i): text.encode() for i, text in enumerate(dataset_texts(self.reference))}
        elif self.reference == "text":
            pass
        elif path.is_dir():
            texts = {name: joined(read_blocks(file, str(path))) for name, file in text_files(path)}
        elif path.is_file():
            texts = {path.name: joined(read_blocks(path, self.reference))}
        else:
            raise UserError(
                f"text {self.reference!r}: no such file; allowed are text, bible, hf:DATASET, a file or a directory"
                + nearest(self.reference, ["text", "bible"])
            )
        if self.pack and texts:
            texts = {self.name: b"\n\n".join(texts.values()) if len(texts) > 1 else next(iter(texts.values()))}
        return texts

    @property
    def name(self) -> str:
        built_in = self.reference in ("text", "bible") or self.reference.startswith("hf:")
        return self.reference if built_in else own_name(Path(os.path.expanduser(self.reference)).resolve().name)

    @property
    def sha256(self) -> str | None:
        """The content's hash; None for prose, which the seed decides."""
        if not self.texts:
            return None
        digest = hashlib.sha256()
        for name, text in self.texts.items():
            digest.update(f"{name}\0{characters(text)}\0".encode(errors="surrogateescape"))
            digest.update(text)
        return digest.hexdigest()

    def windows(self, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int) -> list[Window]:
        """Return `count` windows of exactly `length` tokens, no two overlapping, drawn by seed. Raises UserError for too few."""
        prefix = Encoder(tokenizer, ".", " ").prefix
        room = length - len(prefix)
        if room < 1:
            raise UserError(
                f"context length {length}: this tokenizer puts {len(prefix)} tokens in front of every text; give more"
            )
        if not self.texts:
            return [
                Window(f"text {i}", prefix + prose_ids(tokenizer, room, f"{seed}/document/{i}"), len(prefix))
                for i in range(count)
            ]
        encoded = {name: Tokens(tokenizer, text, name) for name, text in self.texts.items()}
        sizes = {name: len(tokens) for name, tokens in encoded.items()}
        ends = list(accumulate(size // room for size in sizes.values()))
        if ends[-1] < count:
            advice = "; --pack joins files" if len(encoded) > 1 and not self.pack else ""
            raise UserError(
                f"documents {count}: {self.name} has text for {ends[-1]} of {length} tokens (its longest text has "
                f"{max(sizes.values())}); ask for fewer, for a shorter context length, or give more text{advice}"
            )
        if short := sum(size < room for size in sizes.values()):
            logging.getLogger(__name__).warning(
                "ssmax-eval: note: text %s: %d of %d files are shorter than %d tokens and left out; --pack joins them",
                self.name,
                short,
                len(encoded),
                length,
            )
        names, chosen = list(encoded), sorted(random.Random(f"{seed}/documents").sample(range(ends[-1]), count))
        found: list[Window] = []
        for text, places in groupby(chosen, key=lambda place: bisect_right(ends, place)):
            own = [place - (ends[text - 1] if text else 0) for place in places]
            parts = encoded[names[text]].stretches((k * room, (k + 1) * room) for k in own)
            found += [
                Window(f"{names[text]} {k}", prefix + part, len(prefix)) for k, part in zip(own, parts, strict=True)
            ]
        return found


@lru_cache(maxsize=2)  # of the models and of the judge
def windows_of(
    source: Documents, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int
) -> list[Window]:
    """Return the source's windows, encoded once for the check and for the run."""
    return source.windows(tokenizer, length, count, seed)


def joined(blocks: Iterable[str]) -> bytearray:
    """Return a text's blocks as UTF-8."""
    text = bytearray()
    for block in blocks:
        text += block.encode()
    return text


def characters(text: bytes | bytearray) -> int:
    """Return how many characters a UTF-8 text has."""
    blocks = (np.frombuffer(text, np.uint8, min(BLOCK, len(text) - i), i) for i in range(0, len(text), BLOCK))
    return sum(int(np.count_nonzero(block & 0xC0 != 0x80)) for block in blocks)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def prose_ids(tokenizer: PreTrainedTokenizerBase, length: int, seed: str) -> list[int]:
    """Return the first `length` ids of a document of generated prose; a longer one begins the same."""
    stream = prose(random.Random(seed))
    text, sentences = "", SENTENCES_AT_FIRST
    ids: list[int] = []
    # some more than wanted: the last tokens could still change with what follows; twice as much each time, so that
    # encoding from the start again costs no more than the last time
    while len(ids) < length + SPARE_TOKENS:
        text += "".join(f"{sentence} " for sentence in islice(stream, sentences))
        ids = encode(tokenizer, text)
        sentences *= 2
        if not ids:
            raise UserError(
                f"tokenizer {type(tokenizer).__name__}: it has no tokens for prose; give one that knows English"
            )
    return ids[:length]
