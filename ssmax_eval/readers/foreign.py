"""What the readers of functions and servers share: text instead of token ids, and no model in this process."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.encoding import prefix_of
from ..data.own import says
from ..data.prompts import Prompt
from .answers import UNSCORED, Score, Watch
from .memory import Scorer
from .reader import InOrder, Unread

LONGEST_REASON = 200  # characters of a failure that are kept


class ForeignReader:
    """A reader without a model: what it does not give, it says when it is asked."""

    gives: frozenset[str] = frozenset()
    model = None

    scoring: ClassVar[str] = "forced"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.prefix = len(prefix_of(tokenizer))

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids as it stands there."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def answers(self, prompts: list[Prompt], chunk: int | None = None, watch: Watch | None = None) -> list[Score]:
        raise Unread("it scores no given answers")

    def generate(self, prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        raise Unread("it writes nothing")

    def nll(self, ids: Tensor, chunk: int | None = None) -> Tensor:
        raise Unread("it gives no nll")

    def in_memory(self, score: Scorer, halve: bool, chunk: int | None = None) -> InOrder:
        """Return the scorer: its memory is not ours to look after."""
        return lambda prompts: score(prompts)


def written(prompt: Prompt, text: str, cut: bool | None = None) -> Score:
    """Score a text that was written: correct if it says the expected answer. cut: whether it ended where no more may be written."""
    shown = text.encode(errors="replace").decode()  # half a character cannot be stored
    return {**UNSCORED, "predicted": shown, "correct": says(text, prompt.expected), "cut": cut, "error": None}


def unscored(reason: str) -> Score:
    """Return the score of a sample that failed: none, and why."""
    return {**UNSCORED, "error": reason}


def one_line(error: BaseException | str, secrets: tuple[str, ...] = ()) -> str:
    """Say a failure in one line, without what is secret."""
    text = " ".join(str(error).split())
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def described(kind: str, **more: Any) -> dict[str, Any]:
    """Return what a record tells of a reader without a model."""
    return {"reader": kind, "devices": [], **more}
