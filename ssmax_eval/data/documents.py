"""Long documents for the loss: token windows of one length, from generated prose or from texts that are long enough."""

import hashlib
import logging
import os
import random
import struct
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .encoding import Encoder
from .haystacks import bible, dataset_texts, read_text, text_files
from .prose import prose

SENTENCES_AT_FIRST = 64
SPARE_TOKENS = 64


@dataclass(frozen=True)
class Window:
    """A document of exactly the length asked for: where it comes from, and its token ids, the `bos` of its tokenizer first."""

    name: str
    ids: list[int] = field(repr=False)
    bos: int = 0

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
    def texts(self) -> dict[str, str]:
        """The texts by name, read once; {} for prose, which is made as it is asked for."""
        path = Path(os.path.expanduser(self.reference))
        if not self.reference:
            raise UserError("text '': allowed are text, bible, hf:DATASET, a file or a directory")
        if self.reference in ("text", "bible"):
            texts = {"bible": bible()} if self.reference == "bible" else {}
        elif self.reference.startswith("hf:"):
            texts = {str(i): text for i, text in enumerate(dataset_texts(self.reference))}
        elif path.is_dir():
            texts = dict(text_files(path))
        elif path.is_file():
            texts = {path.name: read_text(path, self.reference)}
        else:
            raise UserError(
                f"text {self.reference!r}: no such file; allowed are text, bible, hf:DATASET, a file or a directory"
            )
        return {self.name: "\n\n".join(texts.values())} if self.pack and texts else texts

    @property
    def name(self) -> str:
        path = Path(os.path.expanduser(self.reference))
        built_in = self.reference in ("text", "bible") or self.reference.startswith("hf:")
        return self.reference if built_in else path.resolve().name

    @property
    def sha256(self) -> str | None:
        """The content's hash; None for prose, which the seed decides."""
        if not self.texts:
            return None
        digest = hashlib.sha256()
        for name, text in self.texts.items():
            digest.update(f"{name}\0{len(text)}\0{text}".encode())
        return digest.hexdigest()

    def windows(self, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int) -> list[Window]:
        """Return `count` windows of exactly `length` tokens, no two overlapping, drawn by seed. Raises UserError for too few."""
        bos = Encoder(tokenizer, ".", " ").bos
        room = length - len(bos)
        if not self.texts:
            return [
                Window(f"text {i}", bos + prose_ids(tokenizer, room, f"{seed}/document/{i}"), len(bos))
                for i in range(count)
            ]
        encoded = {name: encode(tokenizer, text) for name, text in self.texts.items()}
        places = [(name, k) for name, ids in encoded.items() for k in range(len(ids) // room)]
        short = [name for name, ids in encoded.items() if len(ids) < room]
        if len(places) < count:
            longest = max(map(len, encoded.values()))
            advice = "; --pack joins files" if len(encoded) > 1 and not self.pack else ""
            raise UserError(
                f"documents {count}: {self.name} holds {len(places)} windows of {length} tokens (longest text: {longest}); "
                f"ask for fewer, for a shorter context length, or give more text{advice}"
            )
        if short:
            logging.getLogger(__name__).warning(
                "ssmax-eval: note: text %s: %d of %d files are shorter than %d tokens and left out; --pack joins them",
                self.name,
                len(short),
                len(encoded),
                length,
            )
        chosen = sorted(random.Random(f"{seed}/documents").sample(range(len(places)), count))
        return [
            Window(f"{name} {k}", bos + encoded[name][k * room : (k + 1) * room], len(bos))
            for name, k in (places[i] for i in chosen)
        ]


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
    return ids[:length]
