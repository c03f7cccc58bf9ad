"""The attention probe: the needle probe's prompts, and what every head does in the answers' rows, from the same forward.

With `restore` the rows of question and answer are read again besides, with attention given back or taken away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import UserError
from ...mechanisms.attach import mechanisms_of
from ...mechanisms.mass import is_softmax
from ...mechanisms.train_length import train_length_of
from ...readers.answers import Score
from ...readers.memory import BranchScorer, Scorer, prompts_at_once
from ...readers.reader import AGAIN, Reader
from ..kind import Probe
from ..needle.grid import MOST_TRIALS
from ..needle.plan import Sample
from ..needle.probe import NeedleProbe
from ..needle.probe import make as needle
from . import PROBE
from .options import AttentionOptions
from .restore import Chosen, branch_restored_by, choose, restored_by, tail_masses

RESTORE = 2  # format: raise it when the same parameters come to mean other rows
CHOSEN_ON = 16  # prompts of a length, at least


@dataclass(frozen=True)
class RestoreProbe(NeedleProbe):
    """A needle grid with masses whose attention is given back and taken away (restore.py)."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {AGAIN}

    def given(self, gives: frozenset[str]) -> NeedleProbe | None:
        return self if self.needs <= gives else None

    def check(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError for what cannot be read, and for weights that are no softmax."""
        super().check(model, tokenizer)
        for mechanism in mechanisms_of(model).values() if model is not None else ():
            if not is_softmax(mechanism):
                raise UserError(
                    f"restore: attention {mechanism.name}: its weights are no softmax of scores, so no score gives a head its mass "
                    "back in closed form; leave --restore out"
                )

    def scorer(self, reader: Reader) -> Scorer:
        return restored_by(reader, self.choice(reader))

    def branch_scorer(self, reader: Reader) -> BranchScorer:
        return branch_restored_by(reader, self.choice(reader))

    def choice(self, reader: Reader) -> Callable[[], Chosen]:
        """Return what chooses once."""
        return cache(lambda: self.chosen(reader))

    def chosen(self, reader: Reader) -> Chosen:
        """Return what is given back: of prompts of the same grid that no run judges, by trials that none can have."""
        lengths = sorted({sample.context_length for sample in self.plan() if not sample.control})
        trained = train_length_of(reader.model.config) if reader.model is not None else None
        length = max([each for each in lengths if each <= (trained or 0)], default=lengths[0])
        trials = range(MOST_TRIALS, MOST_TRIALS + -(-CHOSEN_ON // len(self.depth_percents)))
        score = reader.in_memory(tail_masses(reader), True, self.chunk)
        scores: dict[int, list[Score]] = {}
        for each in {length, lengths[-1]}:
            samples = [Sample(each, depth, trial) for trial in trials for depth in self.depth_percents]
            prompts = [self.prompt(reader.tokenizer, sample) for sample in samples]
            size = prompts_at_once(reader.model, each)
            batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
            scores[each] = [one for batch in batches for one in score(batch)]
        return choose(length, scores, self.seed)

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"restore": RESTORE}

    def reads(self, sample: Sample) -> list[int]:
        """Return the tokens of each sequence: the prompt, and for its last rows the haystack twice, as it is and sharpened."""
        return super().reads(sample) * (1 if sample.control else 3)

    def shared(self, sample: Sample) -> list[int]:
        return super().shared(sample) * (1 if sample.control else 3)


def make(models: Any, options: AttentionOptions, beside: Sequence[Probe] = ()) -> NeedleProbe:
    """Return the grid with masses that options ask for. Raises UserError."""
    plain = needle(models, options, beside)
    if not options.restore:
        return plain
    return RestoreProbe(**{each.name: getattr(plain, each.name) for each in fields(plain)})


PROBE.maker(make)
