"""What a reader is to a probe: who computes, and what it can be asked for."""

from typing import Any, ClassVar, Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import Prompt
from ..errors import UserError
from .answers import Score, Watch
from .memory import Scorer

ANSWERS, GENERATE, NLL, WEIGHTS, AGAIN = "answers", "generate", "nll", "weights", "rows read again"
FORKED = "answers of prompts that begin alike"


class Unread(Exception):
    """A text that a reader could not read, for the reason it says: a sample without a score."""


class InOrder(Protocol):
    """Scores prompts of equal length, with what memory there is."""

    def __call__(self, prompts: list[Prompt]) -> list[Score]: ...


class Reader(Protocol):
    """Reads prompts.

    gives: what it can be asked for. answers: verdicts and nll of given answers. generate: what is written greedily. nll: of
    every token. weights: what every head does in chosen rows. rows read again: with queries multiplied or scores moved, over
    one prefill. answers of prompts that begin alike: what they share is read once. tokenizer: counts its prompts. model: the
    transformers model that it reads with; None for one that is not in this process, or not seen.
    """

    scoring: ClassVar[str]  # of given answers: forced, or masked

    @property
    def gives(self) -> frozenset[str]: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def model(self) -> PreTrainedModel | None: ...

    def prove(self, longest: int, needs: frozenset[str], mechanism: bool = False) -> dict[str, Any]:
        """Return what shows that it reads what it is given, for the record. Raises UserError for what it cannot give."""
        ...

    def answers(self, prompts: list[Prompt], chunk: int | None = None, watch: Watch | None = None) -> list[Score]:
        """Score the given answers of prompts of equal length."""
        ...

    def generate(self, prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        """Score what is written after each prompt's question."""
        ...

    def nll(self, ids: Tensor, chunk: int | None = None) -> Tensor:
        """Return each token's nll but the first's, in nats, float32 (batch, length - 1) on the CPU. Raises Unread."""
        ...

    def in_memory(self, score: Scorer, halve: bool, chunk: int | None = None) -> InOrder:
        """Return a scorer that makes do with less memory when it runs out."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what a record tells of the reader."""
        ...


def refuse_lacking(reader: Reader, needs: frozenset[str]) -> None:
    """Raise UserError if a reader cannot give all that is needed."""
    if lacking := sorted(needs - reader.gives):
        raise UserError(
            f"{type(reader).__name__}: it cannot give {lacking[0]}; it gives {', '.join(sorted(reader.gives))}"
        )
