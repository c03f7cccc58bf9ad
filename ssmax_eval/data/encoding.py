"""Text to token ids, so that pieces encoded apart equal the ids of the text they make together."""

import random
from collections.abc import Iterator
from itertools import accumulate, chain, islice

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .haystacks import Haystack

SENTENCES_AT_ONCE = 64
BLANK = 10_000  # sentences in a row without a token, after which no more are read
EXTRA_SENTENCES = 200  # how far beyond the length a window looks for tokens that come out even
LONGEST_FILL = 16  # spaces or empty lines in front; beyond, a script without words is cut at any token
FIRST = ("The", "a", "1", '"', "北")  # what a text can begin with, to see whether a header's end merges with it
LEFT_OUT_TRIED = 20  # sentences of a cut window that may be left out, the last ones
SENTENCES_TRIED = 1000  # where it looks for the ones to leave out: its last so many


class Encoder:
    """Encode sentences as they stand after another sentence.

    anchor is a text that a sentence can end with, joiner what stands between sentences: each piece is encoded as
    anchor + joiner + piece and the anchor's ids taken off, which is what makes borders safe for every tokenizer
    that splits words before it merges.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, anchor: str, joiner: str) -> None:
        self.tokenizer = tokenizer
        self.anchor, self.joiner = anchor, joiner
        self.anchor_ids = self._ids([anchor])[0]
        self.prefix = prefix_of(tokenizer)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # quiet: a text longer than the model's limit is cut into windows later
        return self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, its joiner in front included."""
        head = len(self.anchor_ids)
        every = self._ids([f"{self.anchor}{self.joiner}{text}" for text in texts])
        if any(ids[:head] != self.anchor_ids for ids in every):
            raise UserError(
                f"tokenizer {type(self.tokenizer).__name__}: it merges tokens across sentence ends, which needles cannot stand"
            )
        return [ids[head:] for ids in every]

    def bare(self, text: str) -> list[int]:
        """Return the ids of a text as it is, nothing in front of it: special tokens that it spells are themselves."""
        return self._ids([text])[0] if text else []

    def filler(self) -> list[int]:
        """Return the token that fills up a text where nothing else comes out even: the joiner's, or where it has none the anchor's."""
        return self.encode([""])[0][-1:] or self.anchor_ids[-1:]

    def header(self, text: str) -> list[int]:
        """Return the ids of a chat template's header, without white space at its end that goes with the first word behind it."""
        for start in (text, text.rstrip(" "), text.rstrip()):
            ids = self.bare(start)
            if all(self.bare(text + first)[: len(ids)] == ids for first in FIRST):
                return ids
        raise UserError(
            f"tokenizer {type(self.tokenizer).__name__}: it merges the end of the chat template's header with the text behind it; "
            "give another template, or none"
        )

    def opened(self, text: str, ids: list[int]) -> list[int]:
        """Return the ids of a sentence as it stands directly behind a header, without its joiner."""
        start, whole = self.header(text), self.bare(text + self.decode(ids).lstrip())
        if whole[: len(start)] != start:
            raise UserError(
                f"tokenizer {type(self.tokenizer).__name__}: it merges the end of the chat template's header with "
                f"{self.decode(ids)[:20]!r}; give another template or haystack, or none"
            )
        return whole[len(start) :]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def find(self, ids: list[int], text: str, later: int = 0) -> tuple[int, int]:
        """Return the shortest span of ids, [start, end), whose decoding holds text: behind it stand so many later ones."""

        def holds(start: int) -> bool:
            found = self.decode(ids[start:])
            return text in found and (not later or len(starts_of(text, found)) > later)

        start = next((i for i in reversed(range(len(ids))) if holds(i)), None)
        if start is None:
            raise UserError(f"tokenizer {type(self.tokenizer).__name__}: it does not give {text!r} back after encoding")
        end = next(j for j in range(start + 1, len(ids) + 1) if text in self.decode(ids[start:j]))
        return start, end

    def starts_word(self, before: int, token: int) -> bool:
        """Tell whether a token begins with white space, so that a cut in front of it splits no word."""
        rest = self.decode([before, token]).removeprefix(self.decode([before]))
        return rest[:1].isspace()

    def window(self, source: Haystack, rng: random.Random, length: int) -> tuple[list[int], list[int]]:
        """Return exactly `length` haystack ids that start and, if at all possible, end with a sentence; and the sentence ends.

        The ends are token offsets, 0 and length among them. The window starts where rng says; sentences inside, in a
        row, are left out so that the tokens come out even. Where that cannot be (a short cycle), the last sentence is cut
        between two words, or if it has no words, as the lines of ABCDigits, the window begins with empty lines instead.
        """
        if length == 0:
            return [], [0]
        stream = self._encoded(source.sentences(rng))
        taken: list[list[int]] = []
        ends = [0]
        index = {0: 0}
        enough = 0
        while not enough or len(taken) < enough + EXTRA_SENTENCES:
            taken.append(next(stream))
            ends.append(ends[-1] + len(taken[-1]))
            index[ends[-1]] = len(taken)
            excess = ends[-1] - length
            if excess < 0:
                continue
            enough = enough or len(taken)
            for i in range(max(1, len(taken) - SENTENCES_TRIED) if excess else len(taken), len(taken) + 1):
                if (j := index.get(ends[i] + excess)) is not None:
                    return join(taken[:i] + taken[j:])
        return self._cut(taken[:enough], length)

    def _encoded(self, sentences: Iterator[str]) -> Iterator[list[int]]:
        yield from filter(None, (ids for _, ids in self.encoded(sentences)))

    def encoded(self, sentences: Iterator[str]) -> Iterator[tuple[str, list[int]]]:
        """Yield sentences with their ids, those without any left out. Raises UserError for a text that has none to give."""
        blank = 0
        while blank < BLANK:
            texts = list(islice(sentences, SENTENCES_AT_ONCE))
            found = [(text, ids) for text, ids in zip(texts, self.encode(texts), strict=True) if ids]
            blank = 0 if found else blank + len(texts)
            yield from found
        raise UserError(
            f"tokenizer {type(self.tokenizer).__name__}: it has no tokens for {BLANK:,} sentences of the haystack in a row; give another "
            "text, or a tokenizer that knows it"
        )

    def _cut(self, sentences: list[list[int]], length: int) -> tuple[list[int], list[int]]:
        """Cut sentences, together at least `length` tokens, where a word starts: with one of them left out if that brings
        a word's start to `length`, else at the last one before it, spaces or empty lines put in front."""
        for i in range(len(sentences), max(-1, len(sentences) - LEFT_OUT_TRIED), -1):
            ids, ends = join(sentences[:i] + sentences[i + 1 :])
            if len(ids) > length and self.starts_word(ids[length - 1], ids[length]):
                return ids[:length], [*(end for end in ends if end < length), length]
        ids, ends = join(sentences)
        cut = next(p for p in range(length, -1, -1) if p in ends or self.starts_word(ids[p - 1], ids[p]))
        if length - cut > LONGEST_FILL:
            return ids[:length], [*(end for end in ends if end < length), length]
        fill = self.filler() * (length - cut)
        return fill + ids[:cut], [0, *(end + len(fill) for end in ends if 0 < end < cut), length]


def starts_of(text: str, whole: str) -> list[int]:
    """Return where a text begins in another one, each time that it stands there."""
    return [i for i in range(len(whole)) if whole.startswith(text, i)]


def prefix_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that a tokenizer puts in front of every text; what it puts behind one (T5, BERT) is no part of them.

    Raises UserError where the two cannot be told from the text itself.
    """
    shared: set[tuple[int, ...]] | None = None
    for text in ("a", "b", "1"):
        whole = list(tokenizer(text, verbose=False).input_ids)
        bare = list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        starts = range(len(whole) - len(bare) + 1)
        fits = {tuple(whole[:i]) for i in starts if whole[i : i + len(bare)] == bare}
        shared = fits if shared is None else shared & fits
    if not shared:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__}: what it puts in front of a text cannot be told from the text; "
            "give one whose special tokens stand around the text's own"
        )
    shortest = min(shared, key=len)
    return list(shortest)


def join(sentences: list[list[int]]) -> tuple[list[int], list[int]]:
    """Return the ids of sentences in a row, and the offsets of their ends, 0 first."""
    return list(chain.from_iterable(sentences)), [0, *accumulate(map(len, sentences))]
