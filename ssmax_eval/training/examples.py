"""Training sequences, each decided by its seed and index alone: the same for every mechanism, process count and resume point."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import UserError
from .corpus import Corpus
from .facts import Fact, draw_facts
from .recipes import Recipe

TEXT, WORDS, VALUE, ANSWER = range(4)  # what a token is: text, a fact's or question's words, a stated value, an answer
Piece = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Examples(Dataset[dict[str, torch.Tensor]]):
    """The sequences of a training run in order: text with facts at sentence ends and, later, their questions.

    Item: input_ids and kinds (TEXT, WORDS, VALUE or ANSWER), int64 of shape (train_length / length, length); length is
    short_length in the first short_steps, afterwards train_length or, drawn for each step, one of the recipe's lengths. An
    encoder's has `shown` too: input_ids with masks, as the model gets them.
    """

    recipe: Recipe
    corpus: Corpus
    seed: int

    def check(self) -> None:
        """Raise UserError if the text is shorter than a sequence, or a sequence too short for any question."""
        longest = self.recipe.train_length
        if len(self.corpus.ids) < 2 * longest:
            raise UserError(
                f"text {self.recipe.text!r}: {len(self.corpus.ids)} tokens are too few for sequences of {longest}; give more"
            )
        if not any((self[len(self) - 1 - i]["kinds"] == ANSWER).any() for i in range(min(8, len(self)))):
            raise UserError(f"recipe train_length {longest}: no fact and its question fit into it; give more tokens")

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        short = index < self.recipe.short_steps * self.recipe.batch_size
        length = self.length_of(index // self.recipe.batch_size)
        rng = random.Random(f"{self.seed}/{index}")
        plain = short or index < round(self.recipe.steps * self.recipe.plain_share) * self.recipe.batch_size
        mix = self.recipe.plain if plain else self.recipe
        count = length // (self.recipe.short_spacing if short else self.recipe.spacing)
        parts = [self.compose(rng, mix, count, length) for _ in range(self.recipe.train_length // length)]
        item = {
            "input_ids": torch.from_numpy(np.stack([ids for ids, _ in parts])),
            "kinds": torch.from_numpy(np.stack([kinds for _, kinds in parts])),
        }
        return item | ({"shown": self.masked(f"{self.seed}/{index}", **item)} if self.recipe.is_encoder else {})

    def length_of(self, step: int) -> int:
        """Return how long the sequences of a step are, in tokens."""
        if step < self.recipe.short_steps:
            return self.recipe.short_length
        return random.Random(f"{self.seed}/length/{step}").choice(self.recipe.lengths)

    def masked(self, seed: str, input_ids: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Return ids with the mask token in place of every answer and of a share of the text, drawn by the seed.

        Facts stay, and so do the words of questions: a masked fact could be read off its question only, and the other way round.
        """
        rng = np.random.default_rng([*hashlib.sha256(f"mask/{seed}".encode()).digest()])
        drawn = torch.from_numpy(rng.random(kinds.shape)) < self.recipe.mask_share
        return input_ids.masked_fill(
            (kinds == ANSWER) | ((kinds == TEXT) & drawn), self.corpus.encoder.tokenizer.mask_token_id
        )

    def compose(self, rng: random.Random, mix: Recipe, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and kinds, int64, of one sequence of `length` tokens with up to `count` facts."""
        # two at least: with one there is nothing to tell apart, and the answer is whatever value the context holds
        facts = draw_facts(rng, mix, max(2, count))
        pieces = self.encode(facts)
        events: list[tuple[float, Piece]] = []
        room = length
        for fact, asked in pieces:
            # the fact anywhere, its questions anywhere behind it
            at = rng.random()
            for moment, piece in [(at, fact)] + [(rng.uniform(at, 1), asked) for _ in range(self.recipe.questions)]:
                if len(piece[0]) <= room:
                    events.append((moment, piece))
                    room -= len(piece[0])
                elif piece is fact:
                    break
        events.sort(key=lambda event: event[0])
        text, ends = self.corpus.window(rng, room)
        places = sorted(rng.choice(ends) for _ in events)
        ids: list[int] = []
        kinds: list[int] = []
        cut = 0
        for place, (_, piece) in zip([*places, len(text)], [*events, (1.0, ([], []))], strict=True):
            ids += text[cut:place].tolist()
            kinds += [TEXT] * (place - cut)
            cut = place
            ids += piece[0]
            kinds += piece[1]
        return np.array(ids, np.int64), np.array(kinds, np.int64)

    def encode(self, facts: list[Fact]) -> list[tuple[Piece, Piece]]:
        """Return, for each fact, the ids and kinds of its statement and of its question with the answer."""
        texts = [
            text
            for fact in facts
            for text in (
                fact.said,
                fact.statement,
                fact.question,
                f"{fact.question}{fact.gap}{fact.value}",
                f"{fact.question}{fact.gap}{fact.value}{fact.close}",
            )
        ]
        every = self.corpus.encoder.encode(texts)
        found: list[tuple[Piece, Piece]] = []
        for i in range(0, len(every), 5):
            said, stated, question, answered, closed = every[i : i + 5]
            head, start, end = (
                common_prefix(*pair) for pair in ((said, stated), (question, answered), (answered, closed))
            )
            # a space that is a token of its own is the question's, as in the probe
            while start < end and not self.corpus.encoder.decode(answered[start : start + 1]).strip():
                start += 1
            fact = (stated, [WORDS] * head + [VALUE] * (len(stated) - head))
            asked = (closed, [WORDS] * start + [ANSWER] * (end - start) + [WORDS] * (len(closed) - end))
            found.append((fact, asked))
        return found


def common_prefix(first: list[int], second: list[int]) -> int:
    """Return how many ids two lists share at their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, two) in enumerate(pairs) if one != two), min(len(first), len(second)))


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put the sequences of several items below each other."""
    return {key: torch.cat([item[key] for item in items]) for key in items[0]}
