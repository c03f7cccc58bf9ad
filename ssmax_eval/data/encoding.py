"""Text to token ids, so that pieces encoded apart equal the ids of the text they make together."""

import random
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .haystacks import Haystack

SENTENCES_AT_ONCE = 64
WINDOWS_TRIED = 400


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
        first = tokenizer("a").input_ids[:1]
        bos = tokenizer.bos_token_id
        self.bos = [bos] if bos is not None and first == [bos] else []

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

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def find(self, ids: list[int], text: str) -> tuple[int, int]:
        """Return the shortest span of ids, [start, end), whose decoding holds the last occurrence of text."""
        start = max((i for i in range(len(ids)) if text in self.decode(ids[i:])), default=None)
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

        The ends are token offsets, 0 and length among them. Starts are tried in order until the tokens come out even;
        where they never do (a short cycle), the last sentence is cut between two words, or if it has no words, as the
        lines of ABCDigits, the window ends with a whole line and begins with empty ones.
        """
        if length == 0:
            return [], [0]
        ids: list[int] = []
        ends = [0]
        stream = source.sentences(rng)
        tried = 0
        while tried < WINDOWS_TRIED:
            self._extend(ids, ends, stream)
            while tried < WINDOWS_TRIED and ends[tried] + length <= ends[-1]:
                start = ends[tried]
                if ends[bisect_left(ends, start + length)] == start + length:
                    return self._cut(ids, ends, start, length)
                tried += 1
        for start in ends[:tried]:
            if self.starts_word(ids[start + length - 1], ids[start + length]):
                return self._cut(ids, ends, start, length)
        whole = max(end for end in ends if end <= length)
        fill = self.encode([""])[0][-1:] * (length - whole)
        if len(fill) < length - whole:
            return self._cut(ids, ends, 0, length)  # nothing to fill with: any token border has to do
        return fill + ids[:whole], [0, *(end + len(fill) for end in ends if 0 < end <= whole)]

    def _extend(self, ids: list[int], ends: list[int], stream: Iterator[str]) -> None:
        for sentence in self.encode(list(islice(stream, SENTENCES_AT_ONCE))):
            if sentence:
                ids += sentence
                ends.append(len(ids))

    @staticmethod
    def _cut(ids: list[int], ends: list[int], start: int, length: int) -> tuple[list[int], list[int]]:
        inside = [end - start for end in ends if start <= end <= start + length]
        return ids[start : start + length], inside if inside[-1] == length else [*inside, length]
