"""Sentences of a text of any size: the text kept once as UTF-8, and one offset for each sentence."""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .reading import BLOCK, in_blocks

# plan 1's: closing punctuation, perhaps a closing quote, a space, and no lower-case letter after it
ENGLISH_END = re.compile(
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)\s+(?![a-z])|(?<=[。！？])\s*"
)
SPACED = ".!?…‼⁇⁈⁉"  # end a sentence where a space follows
# Unicode's Sentence_Terminal of living scripts, and Tibetan's shad: end a sentence with or without a space
UNSPACED = (
    "\u037e\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0964\u0965\u0df4\u0f0d\u0f0e\u104a\u104b\u1362\u1367\u1368"
    "\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1b5a\u1b5b\u1b5e\u1b5f\u1c3b\u1c3c\u1c7e\u1c7f"
    "\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb"
    "\uff01\uff0e\uff1f\uff61"
)
CLOSING = "\"'”’»)\\]」』）】》〉"
# every run once and whole, whatever it ends, so that a text of nothing but full stops takes linear time too
ANY_END = re.compile(f"(?<![{SPACED}{UNSPACED}])([{SPACED}{UNSPACED}]++)[{CLOSING}]*+")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St)$", re.IGNORECASE)
CONTEXT = 64  # bytes on either side of a block that an end can hang on
LONGEST_SENTENCE = 1000  # characters; longer runs without punctuation are cut between words
UNSPACED_PIECE = 40  # characters of a script, or of noise, that has no spaces to cut at
CUT_AT_ONCE = 1 << 16  # bytes of a long sentence, far more than one piece of it
SURE, CAPITAL, SMALL = range(3)  # an end whatever follows; one of SPACED's, by whether a lower-case letter follows


class Sentences:
    """The sentences of a text, in order, white space made single spaces.

    any_script: know the sentence ends of every script, and those before a lower-case letter where most are (a text in
    lower case). Without it English ends only, as plan 1 has them.
    """

    def __init__(self, blocks: Iterable[str], any_script: bool = False) -> None:
        self.any_script = any_script
        self.text, self.sha256 = normalised(blocks)

    @cached_property
    def starts(self) -> NDArray[np.unsignedinteger]:
        """The byte at which each sentence starts, and the end of the text."""
        kind = "I" if len(self.text) < 2**32 else "Q"
        kept, small, capitals = array(kind, [0]), array(kind), 0
        for start, what in ends(self.text, any_end if self.any_script else english_end):
            (small if what == SMALL else kept).append(start)
            capitals += what == CAPITAL
        kept.append(len(self.text))
        found = np.array(kept)
        if len(small) > capitals:
            found = np.sort(np.concatenate([found, np.array(small)]))
        cuts = array(kind)
        for i in np.flatnonzero(np.diff(found) > LONGEST_SENTENCE):
            cuts.extend(long_cuts(self.text, int(found[i]), int(found[i + 1]), self.any_script))
        return np.sort(np.concatenate([found, np.array(cuts)])) if cuts else found

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.text[self.starts[i] : self.starts[i + 1]].decode().strip()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def split_sentences(text: str, any_script: bool = False) -> list[str]:
    """Split a text into sentences, white space normalised to single spaces."""
    return list(Sentences(in_blocks(text), any_script)) if text.strip() else []


def normalised(blocks: Iterable[str]) -> tuple[bytearray, str]:
    """Return a text's words, single spaces between them, as UTF-8, and the sha256 of the text as it was."""
    text, digest, gap = bytearray(), hashlib.sha256(), False
    for block in blocks:
        digest.update(block.encode())
        gap |= block[:1].isspace()
        if words := " ".join(block.split()):
            if gap and text:
                text += b" "
            text += words.encode()
            gap = False
        gap |= block[-1:].isspace()
    return text, digest.hexdigest()


def english_end(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the next sentence starts, for each sentence end that plan 1 knows."""
    return ((match.end(), SURE) for match in ENGLISH_END.finditer(text))


def any_end(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the next sentence starts and how sure that is, for each sentence end of any script."""
    for match in ANY_END.finditer(text):
        start = match.end()
        spaced = text[start : start + 1] == " "
        start += spaced
        if not all(mark in SPACED for mark in match[1]):
            yield start, SURE
        elif spaced and not (match[1] == "." and ABBREVIATION.search(text, max(0, match.start() - 4), match.start())):
            yield start, SMALL if text[start : start + 1].islower() else CAPITAL


def ends(text: bytearray, find: Callable[[str], Iterator[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    """Yield what `find` yields of a whole text, in bytes, reading it block by block."""
    for start in range(0, len(text), BLOCK):
        stop = start + BLOCK
        at = border(text, max(0, start - CONTEXT))
        part, seen = text[at : border(text, min(len(text), stop + CONTEXT))].decode(), 0
        for position, what in find(part):
            at += len(part[seen:position].encode())
            seen = position
            if start < at <= stop and at < len(text):
                yield at, what


def border(text: bytes | bytearray, at: int) -> int:
    """Return the last byte at or before `at` that starts a character."""
    while 0 < at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def long_cuts(text: bytearray, start: int, stop: int, whole_characters: bool) -> Iterator[int]:
    """Yield the bytes at which text[start:stop], a sentence, is cut: between words, or where there are none, anywhere."""
    stop -= text[stop - 1] == 0x20
    while stop - start > LONGEST_SENTENCE:
        end = border(text, min(stop, start + CUT_AT_ONCE))
        part, at, seen = text[start:end].decode(), 0, 0
        while len(part) - at > LONGEST_SENTENCE:
            cut = part.rfind(" ", at + 1, at + LONGEST_SENTENCE)
            if cut < 0:
                cut = at + UNSPACED_PIECE
                while whole_characters and cut < len(part) - 1 and not starts_character(part, cut):
                    cut += 1
            at = cut + (part[cut] == " ")
            start += len(part[seen:at].encode())
            seen = at
            yield start
        if end == stop:
            return


def starts_character(text: str, at: int) -> bool:
    """Tell whether a cut in front of text[at] leaves what a reader sees as one character whole."""
    joined = "\u200d" in text[at - 1 : at + 1]  # emoji of several
    marks = unicodedata.category(text[at])[0] == "M" or "\U0001f3fb" <= text[at] <= "\U0001f3ff"
    return not joined and not marks
