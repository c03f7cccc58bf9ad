"""What the loss probe can be asked."""

from dataclasses import dataclass
from typing import Annotated

from ..defaults import DOCUMENTS, TEXT
from ..options import Chunk, LimitTokens, Options, Told, auto

AUTO = "auto"


def number_or_auto(what: str, text: str) -> int | str:
    """Read auto, or one whole number."""
    number = auto(what, text)
    return AUTO if number is None else number


@dataclass(frozen=True, kw_only=True)
class LossOptions(Options):
    """Loss by position far beyond the training length, and what the far context is worth."""

    context_length: Annotated[
        int | None, Told("Tokens of a document. Default: the longest context length that needle takes.", alone=True)
    ] = None
    documents: Annotated[int, Told("How many documents.")] = DOCUMENTS
    text: Annotated[
        str, Told("text (generated prose), bible, hf:DATASET, a file, or a directory of documents.", "NAME|PATH")
    ] = TEXT
    window: Annotated[
        int | None, Told("Near context that the context gain leaves. Default: the training length, at most 256.")
    ] = None
    chunk: Chunk = None
    limit_tokens: LimitTokens = None
    key_context: Annotated[
        int | str | None,
        Told(
            "Also the loss of key tokens: those that gain 2 nats from what lies more than N tokens back, and cost less than 2 then. "
            "auto: the training length, at most 4,096. Default: only with --key-model.",
            "N|auto",
            number_or_auto,
        ),
    ] = None
    key_model: Annotated[
        str | None,
        Told("Which model says which tokens are key, for all models alike. Default: each for itself.", "REF"),
    ] = None
    pack: Annotated[bool, Told("Join files that are shorter than a document.")] = False
