"""The text a model trains on, and the tokenizer made from it."""

import hashlib
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..data.encoding import Encoder
from ..data.haystacks import Document, haystack
from ..data.needles import RECALL_CITIES, RECALL_VALUES, recall_fact, recall_question
from ..data.prose import prose
from ..errors import UserError
from .facts import draw_facts
from .recipes import Recipe

END = "<|endoftext|>"
MASK = "[MASK]"
BLOCK = 64  # sentences that stay together when a text is thinned out
TOKENIZER_CHARACTERS = 8_000_000


def read_sentences(recipe: Recipe) -> tuple[list[str], str]:
    """Return about text_characters of sentences of the recipe's text, and the sha256 of what was read.

    `generated` is the seeded prose of data.prose; anything else is read as a haystack (a path, `hf:DATASET`, bible). A text that
    is longer is thinned out evenly, in blocks of sentences.
    """
    if recipe.text == "generated":
        sentences: list[str] = []
        size = 0
        for document in range(recipe.text_characters):
            sentences += islice(prose(random.Random(f"training/{document}")), 400)
            size += sum(map(len, sentences[-400:]))
            if size >= recipe.text_characters:
                break
    else:
        known = recipe.text == "bible" or recipe.text.startswith("hf:") or Path(recipe.text).expanduser().exists()
        source = haystack(recipe.text) if known else None
        if not isinstance(source, Document):
            raise UserError(
                f"text {recipe.text!r}: no such file; allowed are generated, bible, hf:DATASET, a file or a folder"
            )
        sentences = list(source.every)
        blocks = [sentences[i : i + BLOCK] for i in range(0, len(sentences), BLOCK)]
        total = sum(map(len, sentences))
        keep = min(1.0, recipe.text_characters / total)
        sentences = [
            text for i, block in enumerate(blocks) if int((i + 1) * keep) > int(i * keep) or keep == 1 for text in block
        ] or blocks[0]
    return sentences, hashlib.sha256("\n".join(sentences).encode()).hexdigest()


def train_tokenizer(recipe: Recipe, sentences: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of the recipe's size: digits single, its words those of the text and of the facts."""
    rng = random.Random("tokenizer")
    text = list(islice(every_nth(sentences, TOKENIZER_CHARACTERS), len(sentences)))
    facts = [fact for _ in range(max(1, len(text) // 40)) for fact in draw_facts(rng, recipe, 4)]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    masks = {"mask_token": MASK} if recipe.is_encoder else {}
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END, *masks.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [f" {line}" for line in text]
    if recipe.task != "recall":
        lines += [f" {line}" for fact in facts for line in (fact.statement, fact.question)]
    tokenizer.train_from_iterator(lines, trainer)
    if recipe.task == "recall":
        words = [f" {recall_fact(city, value)}" for city in RECALL_CITIES for value in RECALL_VALUES]
        words += [f" {recall_question(city)}" for city in RECALL_CITIES]
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False, **masks
    )


def every_nth(sentences: list[str], characters: int) -> list[str]:
    """Return every n-th sentence, n such that about so many characters remain."""
    step = max(1, round(sum(map(len, sentences)) / characters))
    return sentences[::step]


@dataclass(frozen=True)
class Corpus:
    """Encoded sentences in a row: ids, int32, and the offsets of their ends, 0 first."""

    encoder: Encoder
    ids: np.ndarray
    ends: np.ndarray
    sha256: str

    @classmethod
    def encode(cls, tokenizer: PreTrainedTokenizerBase, sentences: list[str], sha256: str) -> "Corpus":
        encoder = Encoder(tokenizer, ".", " ")
        parts: list[np.ndarray] = []
        for start in range(0, len(sentences), 4096):
            parts += [np.array(ids, np.int32) for ids in encoder.encode(sentences[start : start + 4096])]
        ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        return cls(encoder, np.concatenate(parts), ends, sha256)

    def window(self, rng: random.Random, length: int) -> tuple[np.ndarray, list[int]]:
        """Return `length` ids in a row that end with a sentence, from a drawn place, and the sentence ends inside, 0 first."""
        if length == 0:
            return self.ids[:0], [0]
        low = int(np.searchsorted(self.ends, length))
        last = rng.randrange(low, len(self.ends))
        end = int(self.ends[last])
        inside = self.ends[np.searchsorted(self.ends, end - length) : last + 1] - (end - length)
        return self.ids[end - length : end], [0, *(int(place) for place in inside if place > 0)]
