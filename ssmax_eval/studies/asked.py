"""What advice is asked about, and the prompts and documents that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import UserError
from ..models.subjects import Subject, subjects
from ..probes.by_model import default_lengths, default_task
from ..probes.defaults import DEPTH_PERCENTS
from ..probes.loss.options import LossOptions
from ..probes.needle.options import NeedleOptions

# trials: half of them check. Of 6 checks the exact test can be sure of a gain; of 5 it gives p = 2 * 2**-5 = .06 at best
FEWEST = 12


@dataclass(frozen=True)
class Asked:
    """What advice is asked about: a model, at which lengths, and with how many prompts.

    lengths: the shortest, at which the price is told, is the training length, or near it. trials: of a whole grid for each
    candidate; the race takes under half of those tokens. other_haystack: that the choice is checked on too; None for Bible text,
    or generated prose where that is the haystack. documents: that tell the price.
    """

    model: str | Mapping[str, Any]
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = DEPTH_PERCENTS
    trials: int = 16
    task: str | None = None
    haystack: str = "text"
    other_haystack: str | None = None
    documents: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < FEWEST:
            raise UserError(
                f"trials {self.trials}: allowed are whole numbers from {FEWEST}; half of them check the choice, and of fewer checks "
                "no gain is sure, however clear"
            )

    @cached_property
    def subject(self) -> Subject:
        return subjects(self.model)[0]

    @property
    def models(self) -> dict[str, Any]:
        """The model by its label, as runs take it."""
        return {self.subject.label: self.model} if isinstance(self.model, str) else dict(self.model)

    @property
    def bare(self) -> Any:
        """The model without a label, as what it is gets known."""
        return self.model if isinstance(self.model, str) else next(iter(self.model.values()))

    @cached_property
    def own_task(self) -> str:
        return self.task or default_task(self.bare)

    @cached_property
    def context_lengths(self) -> tuple[int, ...]:
        return tuple(sorted({*self.lengths})) or default_lengths(self.bare)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt: on which layers a mechanism stands goes by it, in the documents too."""
        return max(self.context_lengths)

    @property
    def texts(self) -> LossOptions:
        """The documents, of the shortest length."""
        return LossOptions(context_length=min(self.context_lengths), documents=self.documents, seed=self.seed)

    def grid(
        self,
        share: float,
        seed: int,
        depths: int | None = None,
        haystack: str | None = None,
        task: str | None = None,
        lengths: Sequence[int] | None = None,
    ) -> NeedleOptions:
        """Return a grid of a share of the trials, at so many depths spread evenly, whose prompts are those of no other seed.

        lengths: of the context lengths some, whose prompts are the same without the others; None for all.
        """
        known = sorted({*self.depths})
        last, count = len(known) - 1, min(depths or len(known), len(known))
        places = [last // 2] if count == 1 else [round(i * last / (count - 1)) for i in range(count)]
        return NeedleOptions(
            context_lengths=tuple(self.context_lengths if lengths is None else lengths),
            depth_percents=tuple(known[place] for place in places),
            trials=max(1, round(share * self.trials)),
            seed=self.seed + seed,
            haystack=haystack or self.haystack,
            task=task or self.own_task,
        )
