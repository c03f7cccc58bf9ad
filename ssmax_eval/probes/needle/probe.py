"""The needle probe: retrieval over a grid of context lengths and depths."""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.prompts import Prompt
from ...data.unknown import refuse_lost, refuse_unknown, texts_of
from ...errors import UserError
from ...readers.answers import EXTRA_GENERATED_TOKENS
from ...readers.memory import BranchScorer, Scorer, prompts_at_once
from ...readers.reader import AGAIN, ANSWERS, FORKED, GENERATE, WEIGHTS, Reader
from ...readers.transformers import TransformersReader
from ...rows import Fields
from ..attention.masses import branch_masses_of, masses_of
from ..checks import check_model, refuse_chat_elsewhere
from ..kind import Probe
from . import PROBE
from .asked import parameters_of
from .branches import branches, forking, shared, trials_of
from .credit import METRICS, TO_WRITE
from .grid import NeedleGrid
from .options import GridOptions
from .plan import Sample


@dataclass(frozen=True)
class NeedleProbe(NeedleGrid):
    """A needle grid and how it is read: forced, forked where that pays and changes no number, or generated. Parameters: NeedleGrid."""

    def check(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError if a prompt is too short for its needle, the tokenizer not fit for it or not the model's, or positions
        run out."""
        refuse_chat_elsewhere(model, self.chat)
        refuse_unknown(tokenizer, self.needle)
        refuse_lost(tokenizer, texts_of(self.needle, self.source))
        needed = self.shortest(tokenizer)
        if min(self.context_lengths) < needed:
            raise UserError(
                f"context length {min(self.context_lengths)}: shorter than needle, question and answer with this tokenizer; "
                f"give at least {needed}"
            )
        longest = max(sample.context_length for sample in self.plan())
        extra = (TO_WRITE if self.scoring in METRICS else EXTRA_GENERATED_TOKENS) if self.writes else 0
        check_model(model, tokenizer, longest, longest + extra, self.chunk)

    @property
    def writes(self) -> bool:
        """Whether answers are generated."""
        return self.scoring != "forced"

    @property
    def needs(self) -> frozenset[str]:
        """What a reader has to give."""
        return frozenset({GENERATE if self.writes else ANSWERS, *([WEIGHTS] if self.attention_mass else [])})

    def given(self, gives: frozenset[str]) -> "NeedleProbe | None":
        if self.needs <= gives or GENERATE not in gives:
            return self if self.needs <= gives else None
        left = replace(self, attention_mass=self.attention_mass and WEIGHTS in gives)
        return left if left.needs <= gives else replace(left, attention_mass=False, scoring="generate")

    def __call__(
        self,
        reader: Reader,
        done: Collection[str] = (),
        batch_size: int | None = None,
        claim: Callable[[], bool] = lambda: True,
    ) -> Iterator[list[Fields]]:
        """Yield the rows of each batch, the samples named in `done` left out.

        batch_size None picks one and halves it when memory runs out. Batches are cut from the whole plan, so that a
        resumed run computes what an uninterrupted one does. claim tells of each whether it is this process's; a trial whose
        prompts are read forked is one batch, whatever the batch size.
        """
        model, tokenizer = reader.model, reader.tokenizer
        self.check(model, tokenizer)
        score = reader.in_memory(self.scorer(reader), batch_size is None, self.chunk)
        plan = self.plan()
        again = AGAIN in self.needs
        if self._shared and (how := forking(reader, max(self.context_lengths), self.needs)).why is None:
            by_branch = self.branch_scorer(reader)
            for samples in trials_of(plan):
                if not claim() or all(self.has(sample, done) for sample in samples):
                    continue
                prompts = [self.prompt(tokenizer, sample) for sample in samples]
                for together, read in branches(
                    reader, score, by_branch, prompts, self.attention_mass, again, how.by_snapshots
                ):
                    batch, own = [samples[i] for i in together], [prompts[i] for i in together]
                    if not all(self.has(sample, done) for sample in batch):
                        yield self.scored(reader, batch, own, read(), done)
            plan = [sample for sample in plan if sample.control == "needle-only"]
        for _, group in itertools.groupby(plan, key=lambda s: (s.control, s.context_length)):
            samples = list(group)
            size = batch_size or prompts_at_once(model, samples[0].context_length)
            if samples[0].control == "needle-only":
                size = 1  # these prompts are as long as their needle
            for start in range(0, len(samples), size):
                batch = samples[start : start + size]
                if not claim() or all(self.has(sample, done) for sample in batch):
                    continue
                prompts = [self.prompt(tokenizer, sample) for sample in batch]
                yield self.scored(reader, batch, prompts, score(prompts), done)

    def scored(
        self, reader: Reader, samples: list[Sample], prompts: list[Prompt], scores: list[Fields], done: Collection[str]
    ) -> list[Fields]:
        """Return the rows of prompts that were scored, those named in `done` left out."""
        scoring = self.scoring if self.writes else reader.scoring
        return [
            row | {"scoring": scoring}
            for sample, prompt, score in zip(samples, prompts, scores, strict=True)
            for row in self.rows(sample, prompt, score)
            if row["sample"] not in done
        ]

    forks: ClassVar[bool] = True  # whether prompts may be read forked

    @cached_property
    def _shared(self) -> dict[Sample, int]:
        all_own = self.needle.task in ("multivalue", "multiquery")  # whose facts are all this prompt's own
        if not self.forks or self.scoring != "forced" or self.plan_version < 2 or self.chunk is not None or all_own:
            return {}
        return shared(self.plan(), self.needle, self.attention_mass)

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]
        """What it makes use of where a reader gives it."""
        return frozenset({FORKED} if self._shared else ())

    def shared(self, sample: Sample) -> list[int]:
        """Return how many tokens of a sample's prompt another one has read, about."""
        return [self._shared.get(sample, 0)]

    def scorer(self, reader: Reader) -> Scorer:
        """Return what scores prompts of equal length with a reader."""
        if self.writes:
            return reader.generate
        return masses_of(reader) if self.attention_mass else reader.answers

    def branch_scorer(self, reader: Reader) -> BranchScorer:
        """Return what scores prompts as branches of what they share."""
        assert isinstance(reader, TransformersReader)  # no other reads forked
        return branch_masses_of(reader) if self.attention_mass else reader.forked

    def rows(self, sample: Sample, prompt: Prompt, score: Fields) -> list[Fields]:
        """Return the rows of a prompt and what it scored."""
        return [self.row(sample, prompt, score)]


def make(models: Any, options: GridOptions, beside: Sequence[Probe] = ()) -> NeedleProbe:
    """Return the needle grid that options ask for. Raises UserError."""
    return NeedleProbe(**parameters_of(models, options), scoring=options.scoring, attention_mass=options.attention_mass)


PROBE.maker(make)
