"""Plan 2's windows: exactly as many haystack tokens as asked for, changed as late as possible, so that their starts are shared."""

import random
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate, islice

from .encoding import LONGEST_FILL, Encoder, join
from .haystacks import Haystack
from .sentences import starts_character

AHEAD = 200  # sentences behind the window among which it looks for some that fill it up exactly
AHEAD_TOKENS = 8192  # but no more than about so many tokens of them
BACK = 200  # of its own last sentences that it may give up for that
MOST_APART = 6  # characters
TRIED = 20  # of its last sentences, and of those behind each, when one has to be cut to fit


class Window:
    """The haystack of one trial as far as one prompt needs it: `length` tokens of a source's sentences in a row.

    What comes first stays what the source says first; near the end, sentences are left out so that the tokens come out even,
    or where that cannot be, the last one is cut between words, or in a script without spaces between characters. Lines that
    must stay whole (ABCDigits) are followed by empty ones instead. depth_percent: what is in front of it is not changed, if it
    is not the end.
    """

    def __init__(
        self, encoder: Encoder, source: Haystack, rng: random.Random, length: int, depth_percent: float = 0
    ) -> None:
        self.encoder, self.length = encoder, length
        self.whole_lines = source.joiner == "\n"
        self.texts: list[str] = []
        self.parts: list[list[int]] = []
        self._more = encoder.encoded(source.sentences(rng))
        self.ids, self.ends = self._fitted(self._sentences_to(depth_percent)) if length else ([], [0])

    def _sentences_to(self, depth_percent: float) -> int:
        """Return how many sentences end before a depth, the nearest end taken, and one at least."""
        ends, place = [0], depth_percent / 100 * self.length
        while depth_percent < 100 and ends[-1] < place:
            self._read(len(ends))
            ends.append(ends[-1] + len(self.parts[len(ends) - 1]))
        return max(1, min(range(len(ends)), key=lambda k: abs(ends[k] - place)))

    def cut_at(self, place: int) -> None:
        """Cut the sentence that holds token `place` there, at the nearest word or character: a fact can stand between the halves."""
        ends = [0, *accumulate(map(len, self.parts))]
        k = bisect_right(ends, place) - 1
        halves = self._halves(self.texts[k], place - ends[k])
        if not halves:
            return
        self.texts[k : k + 1] = halves
        self.parts[k : k + 1] = self.encoder.encode(halves)
        self.ids, self.ends = self._fitted(k + 1)

    def sentence_at(self, place: int) -> int:
        """Return how many tokens the sentence has that the source has at token `place`."""
        ends = [0, *accumulate(map(len, self.parts))]
        return len(self.parts[bisect_right(ends, min(place, self.length - 1)) - 1])

    def _read(self, count: int) -> None:
        """Have `count` sentences."""
        for text, ids in islice(self._more, max(0, count - len(self.parts))):
            self.texts.append(text)
            self.parts.append(ids)

    def _read_ahead(self, inside: int) -> int:
        """Have the sentences behind the window that may fill it up; return where they end."""
        stop, tokens = inside, 0
        while stop < inside + AHEAD and tokens < AHEAD_TOKENS:
            self._read(stop + 1)
            tokens += len(self.parts[stop])
            stop += 1
        return stop

    def _fitted(self, keep: int) -> tuple[list[int], list[int]]:
        """Return the ids, and the ends of their sentences, 0 first; at least the first `keep` sentences stay where they fit."""
        inside, total = 0, 0
        while total <= self.length:
            self._read(inside + 1)
            total += len(self.parts[inside])
            inside += 1
        inside -= 1  # the last one is too much
        if total - len(self.parts[inside]) == self.length:
            return join(self.parts[:inside])
        return self._left_out(inside, self._read_ahead(inside), keep) or self._shortened(inside, keep)

    def _left_out(self, inside: int, stop: int, keep: int) -> tuple[list[int], list[int]] | None:
        """Leave sentences out, the fewest and the last ones: `i` stay, and some in a row from behind them fill up exactly."""
        ends = [0, *accumulate(map(len, self.parts[:stop]))]
        index = {end: k for k, end in enumerate(ends)}
        for i in range(inside, max(keep, inside - BACK) - 1, -1):
            for j in range(i + 1, len(ends) - 1):
                if (last := index.get(ends[j] + self.length - ends[i])) is not None:
                    return join(self.parts[:i] + self.parts[j:last])
        return None

    def _shortened(self, inside: int, keep: int) -> tuple[list[int], list[int]]:
        """Cut the last sentence to fit."""
        if not self.whole_lines:
            for places in (words, characters):
                for i in range(inside, max(min(keep, inside), inside - TRIED) - 1, -1):
                    for j in range(i, i + TRIED if i else 1):
                        if found := self._ending(i, j, places):
                            return join(self.parts[:i] + found)
        ids, ends = join(self.parts[:inside])
        missing = self.length - len(ids)
        if missing > LONGEST_FILL:
            ids = join(self.parts[: inside + 1])[0][: self.length]
        else:
            ids += self.encoder.filler() * missing
        return ids, [*ends, self.length]

    def _ending(self, i: int, j: int, places: Callable[[str], list[int]]) -> list[list[int]] | None:
        """Return the sentences from j on that fill up i of them, the last one cut at one of its places; None for none."""
        missing = self.length - sum(map(len, self.parts[:i]))
        stop = j
        self._read(stop + 1)
        while len(self.parts[stop]) <= missing:
            missing -= len(self.parts[stop])
            stop += 1
            self._read(stop + 1)
        if not missing:
            return self.parts[j:stop]
        head = self._head(self.texts[stop], missing, places)
        return None if head is None else self.parts[j:stop] + head

    def _head(self, text: str, tokens: int, places: Callable[[str], list[int]]) -> list[list[int]] | None:
        """Return the ids of a beginning of text that has exactly so many tokens; None where no place gives that.

        Characters may have three tokens each, so that only every third count comes: some stand apart then, each with a space.
        """
        apart: list[list[int]] = []
        for _ in range(MOST_APART if places is characters else 1):
            at = places(text)
            first = self._first(text, at, tokens)
            if first < len(at):
                (ids,) = self.encoder.encode([text[: at[first]].rstrip()])
                if len(ids) == tokens:
                    return [*apart, ids]
            if not at:
                break
            apart += self.encoder.encode([text[: at[0]]])
            tokens -= len(apart[-1])
            text = text[at[0] :].lstrip()
            if not tokens:
                return apart
        return None

    def _first(self, text: str, at: list[int], tokens: int) -> int:
        """Return the first of the places, ascending, in front of which there are at least so many tokens."""
        low, high = 0, len(at)
        while low < high:
            middle = (low + high) // 2
            if len(self.encoder.encode([text[: at[middle]].rstrip()])[0]) < tokens:
                low = middle + 1
            else:
                high = middle
        return low

    def _halves(self, text: str, tokens: int) -> list[str]:
        """Cut a text into two where `tokens` of it are in front, as near as a word's start comes, or if none is near, a character's."""
        best: tuple[int, int] | None = None
        for places in (words, characters):
            at = places(text)
            first = self._first(text, at, tokens)
            near = at[max(0, first - 1) : first + 1]
            off = [(abs(len(self.encoder.encode([text[:p].rstrip()])[0]) - tokens), p) for p in near]
            best = min([*off, *([best] if best else [])], default=None)
            if best and 100 * best[0] <= 5 * self.length:
                break
        return [text[: best[1]].rstrip(), text[best[1] :].lstrip()] if best else []


def words(text: str) -> list[int]:
    """Return where words start, the first one left out."""
    return [i + 1 for i, character in enumerate(text[:-1]) if character == " " and i]


def characters(text: str) -> list[int]:
    """Return where characters start as a reader sees them, the first one left out."""
    return [i for i in range(1, len(text)) if starts_character(text, i)]
