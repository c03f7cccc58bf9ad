"""Answers read under many factors: which heads and rows are multiplied, and with what."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...data.prompts import Prompt
from ...mechanisms.edit import Edit
from ...mechanisms.layers import heads_by_layer
from ...readers.again import Again
from ...readers.answers import Score, score_rows
from ...readers.forked import Trunk
from ...readers.head import nll_of
from ...readers.memory import BranchScorer, Scorer
from ...readers.reader import Reader
from ...readers.transformers import TransformersReader

Head = tuple[int, int]  # layer, head
Reading = tuple[float | None, bool | None]  # an answer's nll and verdict
PER_OCTAVE = 16  # steps of the finest grid of factors in a doubling
FIRST, LAST, EVERY = -16, 32, 4  # of the grid that is read first: .5 to 4, four factors a doubling
CLOSER = (2, 1)  # then this many steps below and above the best, and again
READINGS = len(range(FIRST, LAST + 1, EVERY)) + 2 * len(CLOSER)
ALIKE = 1e-3  # nats: of factors whose nll differs less, the one nearest to 1 is the best
DIGITS = 6  # kept of each stored number


@dataclass(frozen=True)
class Target:
    """What is multiplied. name: as rows have it. heads: which ones; None for all. drawn: how many of the others instead; whole: in
    all rows of the prompt, not only those of question and answer.
    """

    name: str
    heads: frozenset[Head] | None = None
    drawn: bool = False
    whole: bool = False

    def chosen(self, every: Sequence[Head], prompt: Prompt, seed: int) -> frozenset[Head]:
        """Return the heads that are multiplied of a prompt."""
        if not self.drawn:
            return frozenset(every) if self.heads is None else self.heads
        others = [head for head in every if head not in (self.heads or ())]
        wanted = len(every) // 2 if self.heads is None else min(len(self.heads), len(others))
        return frozenset(random.Random(f"{seed}/{prompt.sha256}").sample(others, max(1, wanted)))


@dataclass
class Readings:
    """Reads the rows of prompts' questions and answers under one factor after the other, each prompt with its own.

    chosen: the heads that are multiplied of each prompt. tail: how many of each prompt's last rows, None for all it has. found: of
    each prompt what was read, by the step of its factor.
    """

    again: Again
    prompts: list[Prompt]
    chosen: list[frozenset[Head]]
    tails: list[int]
    shape: Mapping[int, int]
    found: list[dict[int, Reading]] = field(init=False)

    def __post_init__(self) -> None:
        self.found = [{} for _ in self.prompts]
        rows = max(self.tails)
        self.tail = torch.arange(rows) >= rows - torch.tensor(self.tails)[:, None]
        self.masks = {
            layer: torch.tensor([[(layer, head) in heads for head in range(count)] for heads in self.chosen])
            for layer, count in self.shape.items()
        }

    def run(self) -> None:
        """Read the first grid, then closer around each prompt's own best."""
        for step in range(FIRST, LAST + 1, EVERY):
            self.read([step] * len(self.prompts))
        for width in CLOSER:
            middle = [best_of(each) for each in self.found]
            for side in (-width, width):
                self.read([min(max(step + side, FIRST), LAST) for step in middle])

    def read(self, steps: list[int]) -> None:
        """Read each prompt under a factor of its own."""
        factors = torch.tensor([factor_of(step) for step in steps])[:, None, None]
        edits = {
            layer: Edit(self.tail.shape[1], torch.where(mask[:, :, None] & self.tail[:, None], factors, 1.0))
            for layer, mask in self.masks.items()
            if mask.any()
        }
        logits = self.again.logits(max(prompt.answer_length for prompt in self.prompts), edits)
        for i, (prompt, step) in enumerate(zip(self.prompts, steps, strict=True)):
            # at an end of the grid a step can come twice
            self.found[i].setdefault(step, read_of(prompt, logits[i, -prompt.answer_length :]))

    def lists(self, index: int) -> dict[str, Any]:
        """Return what was read of a prompt, as its row has it."""
        steps = sorted(self.found[index])
        nlls, verdicts = zip(*(self.found[index][step] for step in steps), strict=True)
        named = sorted(self.chosen[index]) if len(self.chosen[index]) < sum(self.shape.values()) else None
        return {
            "scaled_heads": None if named is None else [f"{layer}.{head}" for layer, head in named],
            "factors": [rounded(factor_of(step)) for step in steps],
            "nlls": list(nlls),
            "verdicts": list(verdicts),
        }


def factor_of(step: int) -> float:
    """Return the factor of a step of the finest grid; step 0 is 1."""
    return float(2 ** (step / PER_OCTAVE))


def read_of(prompt: Prompt, logits: Tensor) -> Reading:
    """Return an answer's nll in nats and its verdict from its rows' logits (answer tokens, vocabulary)."""
    answer = torch.tensor(prompt.ids[-prompt.answer_length :], device=logits.device)
    if not torch.isfinite(logits).all():
        return None, None
    nll = float(nll_of(logits[None], answer[None]).sum())
    return rounded(nll), bool((logits.argmax(-1) == answer).all())


def best_of(found: Mapping[int, Reading]) -> int:
    """Return the step of the lowest nll: of steps that differ by less than ALIKE the one nearest to 1, then the lower one."""
    known = {step: nll for step, (nll, _) in found.items() if nll is not None}
    lowest = min(known.values(), default=0.0)
    alike = [step for step, nll in known.items() if nll < lowest + ALIKE]
    return min(alike, key=lambda step: (abs(step), step), default=0)


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def readings_of(reader: Reader, targets: Sequence[Target], seed: int) -> Scorer:
    """Return what scores prompts of equal length as they are, and reads each target under all factors (`readings`, by its name)."""
    assert isinstance(reader, TransformersReader)  # no other reads rows again

    def score(prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        return scored(reader, targets, seed, prompts, partial(reader.again, prompts, chunk=chunk))

    return score


def branch_readings_of(reader: Reader, targets: Sequence[Target], seed: int) -> BranchScorer:
    """Return what does the same with prompts as branches of a trunk."""
    assert isinstance(reader, TransformersReader)

    def score(prompts: list[Prompt], starts: list[int], trunk: Trunk) -> list[Score]:
        return scored(reader, targets, seed, prompts, partial(reader.again, prompts, starts=starts, trunk=trunk))

    return score


def scored(
    reader: TransformersReader,
    targets: Sequence[Target],
    seed: int,
    prompts: list[Prompt],
    opened: Callable[[int], Again],
) -> list[Score]:
    """Return what prompts of equal length score. opened: returns them with all rows from one on to be read again."""
    shape = heads_by_layer(reader.model)
    every = [(layer, head) for layer, count in shape.items() for head in range(count)]
    inputs, longest = reader.inputs(prompts[0]), max(prompt.answer_length for prompt in prompts)
    tails = [inputs - prompt.question_start for prompt in prompts]
    again = opened(inputs - max(tails))
    logits = again.logits(longest)
    scores = [score_rows(reader.tokenizer, p, logits[i, -p.answer_length :]) for i, p in enumerate(prompts)]
    read: list[dict[str, Any]] = [{} for _ in prompts]
    for target in targets:
        if target.whole:
            again = opened(0)
        chosen = [target.chosen(every, prompt, seed) for prompt in prompts]
        readings = Readings(again, prompts, chosen, [inputs] * len(prompts) if target.whole else tails, shape)
        readings.run()
        for i, each in enumerate(read):
            each[target.name] = readings.lists(i)
    return [
        each | {"readings": found} if each["correct"] is not None else each
        for each, found in zip(scores, read, strict=True)
    ]
