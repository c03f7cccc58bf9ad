"""The reader of a function: any system that answers a question about a text, asked in text."""

from typing import Any

from ..data.prompts import Prompt
from ..models.foreign import Function
from .answers import Score
from .foreign import ForeignReader, described, one_line, unscored, written
from .reader import GENERATE, refuse_lacking


class FunctionReader(ForeignReader):
    """Asks `answer(context, question) -> text`; what it raises is the reason why a sample has no score.

    A function with an attribute `batch(contexts, questions) -> texts` is asked for all prompts of a batch at once
    (--batch-size). The context is the haystack with its needle, the question stands apart; no answer is shown to it.
    """

    gives = frozenset({GENERATE})

    def __init__(self, function: Function) -> None:
        super().__init__(function.counting.tokenizer)
        self.function = function

    def prove(self, longest: int, needs: frozenset[str], mechanism: bool = False) -> dict[str, Any]:
        """Say by what the lengths of prompts are counted: a function tells nothing of how much it has read."""
        refuse_lacking(self, needs)
        return {"tokens": 0, "length": "counted by the tokenizer; how much of it the function reads is not told"}

    def asked(self, prompt: Prompt) -> tuple[str, str]:
        """Return a prompt's context and question as text."""
        return self.text(prompt.ids[self.prefix : prompt.question_start]).strip(), prompt.question

    def generate(self, prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        """Score what the function writes for each prompt."""
        batch = getattr(self.function.answer, "batch", None)
        if batch is None or len(prompts) == 1:
            return [self.ask(prompt) for prompt in prompts]
        contexts, questions = zip(*map(self.asked, prompts), strict=True)
        try:
            texts = list(batch(list(contexts), list(questions)))
        except Exception as error:
            return [unscored(failure(error))] * len(prompts)
        if len(texts) != len(prompts):
            return [unscored(f"batch() returned {len(texts)} texts for {len(prompts)} prompts")] * len(prompts)
        return [scored(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def ask(self, prompt: Prompt) -> Score:
        """Score what the function writes for one prompt."""
        try:
            text = self.function.answer(*self.asked(prompt))
        except Exception as error:
            return unscored(failure(error))
        return scored(prompt, text)

    def describe(self) -> dict[str, Any]:
        """Return what a record tells of the reader."""
        return described("function")


def scored(prompt: Prompt, text: Any) -> Score:
    if not isinstance(text, str):
        return unscored(f"the function returned {type(text).__name__}, no text")
    return written(prompt, text)


def failure(error: Exception) -> str:
    """Say what a function raised."""
    return one_line(f"{type(error).__name__}: {error}".removesuffix(": "))
