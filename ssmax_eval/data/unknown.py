"""Tokenizers that cannot say a text: keys or values of unknown tokens, or two of the same ids; a haystack or question that is lost."""

import random
import unicodedata
from itertools import islice

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .documents import Documents
from .encoding import Encoder
from .haystacks import Haystack
from .needles import TASKS, Asked, DigitLines
from .prose import prose

MOST_LOST = 0.1  # of a text's characters: what has fewer is another text to the model
PLACES, AT_EACH = 8, 512  # where a text is looked at, and characters there


def refuse_unknown(tokenizer: PreTrainedTokenizerBase, needle: Asked) -> None:
    """Raise UserError if a key or value that the task can draw becomes unknown tokens, or the ids of another.

    Byte tokens, into which many tokenizers take a rare word apart, are no unknown ones.
    """
    lines = needle.task == "digits"
    encoder = Encoder(tokenizer, DigitLines.anchor if lines else ".", DigitLines.joiner if lines else " ")
    name, unknown = type(tokenizer).__name__, tokenizer.unk_token_id
    facts = needle.spoken()
    other = "--task or --value" if needle.task in TASKS else "needle"
    as_words = encoder.encode(list(facts))
    as_facts = encoder.encode(list(facts.values()))
    told: dict[tuple[int, ...], str] = {}
    for (word, fact), alone, ids in zip(facts.items(), as_words, as_facts, strict=True):
        if unknown is not None and unknown in alone:
            raise UserError(
                f"needle {word!r}: tokenizer {name} has no token for it but {tokenizer.unk_token!r}, so a model could not "
                f"find it; give another {other}, or a tokenizer that knows it"
            )
        if (same := told.setdefault(tuple(ids), fact)) != fact:
            raise UserError(
                f"needle {fact!r}: tokenizer {name} gives the same ids to it and to {same!r}, so a model could not tell them "
                f"apart; give another {other}, or another tokenizer"
            )


def texts_of(needle: Asked, source: Haystack) -> dict[str, str]:
    """Return samples of what prompts are made of, by what they are: the question and the haystack."""
    questions = "\n".join(needle.draw(random.Random(i)).question for i in range(PLACES))
    texts = {f"question {questions.splitlines()[0]!r}": questions}
    if needle.task == "digits":  # its haystack is lines of its own
        return texts
    return texts | haystack_text(source)


def haystack_text(source: Haystack) -> dict[str, str]:
    """Return a sample of a haystack, by its name."""
    parts = [source.joiner.join(islice(source.sentences(random.Random(i)), AT_EACH // 64)) for i in range(PLACES)]
    return {f"haystack {source.name!r}": source.joiner.join(part[:AT_EACH] for part in parts)}


def document_text(source: Documents) -> dict[str, str]:
    """Return a sample of the documents' source, by its name."""
    parts = [" ".join(islice(prose(random.Random(0)), PLACES * AT_EACH // 64))]
    if source.texts:
        longest = max(source.texts.values(), key=len)
        starts = [len(longest) * i // PLACES for i in range(PLACES)]
        parts = [longest[start : start + AT_EACH].decode(errors="ignore") for start in starts]
    return {f"text {source.name!r}": " ".join(parts)}


def lost_share(tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Return the share of a text's letters and signs that its tokens do not say: unknown ones, and what has no token at all."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    known = [each for each in ids if each != tokenizer.unk_token_id]
    said = tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    asked = len(letters(text))
    return max(0.0, 1 - len(letters(said)) / asked) if asked else 0.0


def letters(text: str) -> str:
    """Return what a text shows: tokenizers change its spaces, marks and control characters, and lose nothing by that."""
    return "".join(each for each in unicodedata.normalize("NFKD", text) if unicodedata.category(each)[0] not in "ZCM")


def refuse_lost(tokenizer: PreTrainedTokenizerBase, texts: dict[str, str]) -> None:
    """Raise UserError for a text of which a tokenizer cannot say a large share."""
    for what, text in texts.items():
        if (share := lost_share(tokenizer, text)) > MOST_LOST:
            raise UserError(
                f"{what}: tokenizer {type(tokenizer).__name__} has no tokens for {share:.0%} of its characters, so a model could not "
                "read it; give another text, or a tokenizer that knows it"
            )


def lost_in_words(tokenizer: PreTrainedTokenizerBase, texts: dict[str, str]) -> str:
    """Say what share of texts a tokenizer cannot say; nothing where it says all."""
    lost = {what: lost_share(tokenizer, text) for what, text in texts.items()}
    told = [
        f"{what}: its tokenizer has no tokens for {share:.1%} of the characters"
        for what, share in lost.items()
        if share >= 0.0005
    ]
    return "; ".join(told)
