"""Tokenizers that cannot say what a needle says: a key or value of unknown tokens, or two that become the same ids."""

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .encoding import Encoder
from .needles import TASKS, Asked, DigitLines


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
