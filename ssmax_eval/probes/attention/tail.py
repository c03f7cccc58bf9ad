"""The rows of question and answer of prompts, what they can look at there, and what every head has on it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.prompts import Prompt
from ...mechanisms.recorder import Recorded
from .axes import AXES, Axis
from .masses import copies, spans

DECIMALS = 6  # kept of a mass that is wanted: it is the same for every process
SPANS = tuple(dict.fromkeys(axis.span for axis in AXES))


class Tail:
    """The last rows of prompts of equal length, from the first that is of a question.

    start: the position of the first of them. rows: how many. offset (batch, rows): how far each row stands behind the one that
    predicts the answer's first token; below 0 in the question. keys: by span (batch, rows, keys), bool.
    """

    def __init__(self, prompts: list[Prompt], inputs: int) -> None:
        self.prompts = prompts
        self.start = min(prompt.question_start for prompt in prompts)
        self.rows = inputs - self.start
        first = torch.tensor([inputs - prompt.answer_length for prompt in prompts])
        question = torch.tensor([prompt.question_start for prompt in prompts])
        position, key = torch.arange(self.start, inputs), torch.arange(inputs)
        self.offset = position - first[:, None]
        self.asked = position >= question[:, None]  # others of the batch may have longer questions
        value, needle = (spans(prompts, inputs, name)[:, None] for name in ("value", "needle"))
        written = torch.tensor([(p.value_start or 0) if copies(p) else -inputs for p in prompts])
        to_write = (written[:, None] + self.offset).where(self.offset >= 0, -1)
        whole = {
            "value": value,
            "next": key == to_write[..., None],
            "sentence": needle & ~value,
            "tail": (key >= question[:, None])[:, None],
        }
        self.keys = {name: whole[name].expand(-1, self.rows, -1) for name in SPANS}

    def of(self, axis: Axis) -> Tensor:
        """Return which rows are an axis's, bool (batch, rows)."""
        return self.asked & ((self.offset >= 0) == (axis.rows == "answer"))


class TailMasses:
    """What every head has on each span in every row of question and answer, of prompts of equal length (a Watch of readers).

    `of(i)` is prompt i's part: its rows' offsets, and by span and layer (heads, rows).
    """

    def __init__(self, prompts: list[Prompt], inputs: int) -> None:
        self.tail = Tail(prompts, inputs)
        self.rows = torch.arange(self.tail.start, inputs).expand(len(prompts), -1)
        self.positions = [[self.tail.start + 1]] * len(
            prompts
        )  # so that a prompt read in parts ends with all these rows
        self.kept: dict[int, Any] = {}
        self.nll: list[float | None] = []

    def reduce(self, recorded: Recorded) -> dict[str, Tensor]:
        weights = recorded.weights
        return {
            name: weights.masked_fill(~keys[:, None].to(weights.device), 0).sum(-1).cpu()
            for name, keys in self.tail.keys.items()
        }

    def of(self, index: int) -> tuple[Tensor, dict[str, dict[int, Tensor]]]:
        """Return what prompt `index` tells."""
        asked = self.tail.asked[index]
        by_span = {
            name: {layer: each[name][index][:, asked] for layer, each in self.kept.items()}
            for name in SPANS
            if name != "next" or copies(self.tail.prompts[index])
        }
        return self.tail.offset[index][asked], by_span


@dataclass(frozen=True, eq=False)
class Curves:
    """Mean masses of heads by row: by span and layer (heads, offsets), NaN where no prompt has such a row.

    lowest: the first offset.
    """

    lowest: int
    mass: Mapping[str, Mapping[int, Tensor]]

    @classmethod
    def over(cls, parts: Iterable[tuple[Tensor, dict[str, dict[int, Tensor]]]]) -> "Curves":
        """Return the means over prompts, as TailMasses.of tells of each."""
        known = list(parts)
        lowest, highest = (int(of([of(offset) for offset, _ in known])) for of in (min, max))
        sums: dict[str, dict[int, Tensor]] = {name: {} for name in SPANS}
        counts = {name: torch.zeros(highest - lowest + 1, dtype=torch.float64) for name in SPANS}
        for offset, by_span in known:
            at = offset - lowest
            for name, by_layer in by_span.items():
                counts[name][at] += 1
                for layer, mass in by_layer.items():
                    empty = torch.zeros(len(mass), highest - lowest + 1, dtype=torch.float64)
                    sums[name].setdefault(layer, empty)[:, at] += mass.double()
        means = {
            name: {layer: (each / counts[name]).round(decimals=DECIMALS) for layer, each in by_layer.items()}
            for name, by_layer in sums.items()
        }
        return cls(lowest, means)

    def on(self, axis: Axis) -> dict[tuple[int, int], float]:
        """Return every head's mean over an axis's rows, by layer and head."""
        of_answer = torch.arange(self.lowest, self.lowest + self.width) >= 0
        rows = of_answer if axis.rows == "answer" else ~of_answer
        found = {layer: mass[:, rows].nanmean(-1).nan_to_num() for layer, mass in self.mass[axis.span].items()}
        return {(layer, head): float(each) for layer, mean in found.items() for head, each in enumerate(mean)}

    @property
    def width(self) -> int:
        return next((mass.shape[-1] for by in self.mass.values() for mass in by.values()), 0)

    def wanted(self, axis: Axis, heads: list[tuple[int, int]], tail: Tail) -> Tensor:
        """Return the mass that heads have in each row of other prompts, (batch, heads, rows); NaN in rows that are not the axis's."""
        index = tail.offset - self.lowest
        known = tail.of(axis) & (index >= 0)
        curves = torch.stack([self.mass[axis.span][layer][head] for layer, head in heads])
        found = curves[:, index.clamp(0, self.width - 1)]  # answers longer than any: as their last token
        return found.transpose(0, 1).where(known[:, None], torch.nan)
