"""Token ids of a text of any size, encoded piece by piece so that never more than a piece of it is in ids at once."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .sentences import border

PIECE = 1 << 16  # bytes encoded at a time
OVERLAP = 1 << 12  # characters that two pieces share, to find where both have come to the same tokens
AGREE = 16  # tokens in a row that must be equal in both
LONGEST_WITHOUT_OFFSETS = 1 << 24  # bytes

Span = tuple[int, int]


class Piece(NamedTuple):
    """Bytes [start, stop) of a text; of their tokens, [first, last) are the text's own."""

    start: int
    stop: int
    first: int
    last: int


class Tokens:
    """The ids that encoding a whole text gives: how many, and any stretch of them.

    A piece begins some way before the last one ends, and takes over where both have the same tokens for a while. Where
    they never do (a text of one endless word) it takes over at a token's start. Raises UserError for a text of more than
    16 MiB whose tokenizer does not tell where its tokens stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: bytes | bytearray, name: str = "") -> None:
        self.tokenizer, self.text = tokenizer, text
        if not tokenizer.is_fast and len(text) > LONGEST_WITHOUT_OFFSETS:
            raise UserError(
                f"text {name!r}: {len(text):,} bytes are too long for {type(tokenizer).__name__}, which does not tell where its "
                f"tokens stand; give at most {LONGEST_WITHOUT_OFFSETS:,}, or a fast tokenizer"
            )
        self.pieces = list(self._pieces())

    def __len__(self) -> int:
        return sum(piece.last - piece.first for piece in self.pieces)

    def stretches(self, spans: Iterable[Span]) -> Iterator[list[int]]:
        """Yield the ids of each span [start, stop) of tokens; spans in ascending order encode no piece twice."""
        known: tuple[Piece, list[int]] | None = None
        for start, stop in spans:
            ids: list[int] = []
            at = 0
            for piece in self.pieces:
                count = piece.last - piece.first
                if start < at + count and at < stop:
                    if known is None or known[0] is not piece:
                        known = piece, self._encode(piece.start, piece.stop)
                    low, high = max(start - at, 0), min(stop - at, count)
                    ids += known[1][piece.first + low : piece.first + high]
                at += count
            yield ids

    def _encode(self, start: int, stop: int) -> list[int]:
        ids: list[int] = self.tokenizer(self._part(start, stop), add_special_tokens=False, verbose=False).input_ids
        return ids

    def _part(self, start: int, stop: int) -> str:
        return self.text[start:stop].decode()

    def _located(self, start: int, stop: int) -> tuple[list[int], list[Span]]:
        """Return the ids of a part, and the characters that each stands for."""
        found = self.tokenizer(
            self._part(start, stop), add_special_tokens=False, verbose=False, return_offsets_mapping=True
        )
        return found.input_ids, found.offset_mapping

    def _pieces(self) -> Iterator[Piece]:
        if len(self.text) <= PIECE or not self.tokenizer.is_fast:
            yield Piece(0, len(self.text), 0, len(self._encode(0, len(self.text))))
            return
        start, first = 0, 0
        ids, spans = self._located(0, self._stop(0))
        while (stop := self._stop(start)) < len(self.text):
            part = self._part(start, stop)
            begin = last_start(spans, first, len(part) - OVERLAP)
            # behind the token before, so that a space which no token's span holds is not lost
            offset = len(part) if begin == len(ids) else spans[begin - 1][1]
            follows = start + len(part[:offset].encode())
            next_ids, next_spans = self._located(follows, self._stop(follows))
            own, other = agreement(ids, spans, begin, next_ids, next_spans, offset)
            yield Piece(start, stop, first, own)
            start, first, ids, spans = follows, other, next_ids, next_spans
        yield Piece(start, stop, first, len(ids))

    def _stop(self, start: int) -> int:
        return border(self.text, min(start + PIECE, len(self.text)))


def last_start(spans: list[Span], first: int, most: int) -> int:
    """Return the last token behind `first` that starts a character at or before `most`; len(spans) where there is none."""
    for i in range(len(spans) - 1, first, -1):
        if spans[i][0] <= most and spans[i][0] >= spans[i - 1][1] > 0:
            return i
    return len(spans)


def agreement(
    ids: list[int], spans: list[Span], begin: int, next_ids: list[int], next_spans: list[Span], offset: int
) -> tuple[int, int]:
    """Return the first place, in tokens of either of two overlapping parts, from which both have equal tokens for a while.

    The second part starts `offset` characters into the first, at its token `begin`; that is the place where there is no other.
    """
    at: dict[int, int] = {}
    for j, (start, _) in enumerate(next_spans):
        if start > OVERLAP * 4:
            break
        at.setdefault(start + offset, j)
    for i in range(begin, len(ids) - AGREE):
        if spans[i][0] == spans[i - 1][0]:
            continue  # inside a character of several tokens
        same = at.get(spans[i][0])
        if same is None or ids[i : i + AGREE] != next_ids[same : same + AGREE]:
            continue
        if spans[i : i + AGREE] == [(a + offset, b + offset) for a, b in next_spans[same : same + AGREE]]:
            return i, same
    return begin, 0
