"""What the loss probe can be asked."""

from dataclasses import dataclass
from typing import Annotated

from ..defaults import DOCUMENTS, TEXT
from ..options import Chunk, LimitTokens, Options, Told


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
    pack: Annotated[bool, Told("Join files that are shorter than a document.")] = False
