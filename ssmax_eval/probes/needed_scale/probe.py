"""The needed scale: the needle's prompts read once, and their questions' and answers' rows again under many factors."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.prompts import Prompt
from ...errors import UserError
from ...mechanisms.layers import heads_by_layer
from ...readers.memory import BranchScorer, Scorer
from ...readers.reader import AGAIN, ANSWERS, Reader
from ...rows import Fields
from ..by_model import default_layers
from ..checks import require
from ..kind import Probe
from ..needle.asked import parameters_of
from ..needle.plan import Sample
from ..needle.probe import NeedleProbe
from . import PROBE
from .options import NeededScaleOptions
from .readings import READINGS, Head, Target, branch_readings_of, readings_of
from .rows import NeededScaleRow

TAIL = 64  # rows of question and answer, about


@dataclass(frozen=True)
class NeededScaleProbe(NeedleProbe):
    """Parameters of the needed scale: a needle grid's, and what is multiplied besides all heads in the rows of question and answer.

    layers: each alone. heads: LAYER.HEAD, alone, all of them together. scale_random_heads, scale_whole_prompt: controls. The rows
    of a prompt come from one prefill. Raises UserError for values out of range.
    """

    layers: tuple[int, ...] = ()
    heads: tuple[str, ...] = ()
    scale_random_heads: bool = False
    scale_whole_prompt: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for layer in self.layers:
            require(layer >= 0, "layer", layer, "whole numbers from 0, and all")
        for head in self.heads:
            require(re.fullmatch(r"\d+\.\d+", head) is not None, "head", head, "LAYER.HEAD, counted from 0")
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        object.__setattr__(self, "heads", tuple(f"{layer}.{head}" for layer, head in sorted(self.chosen)))

    @property
    def name(self) -> str:
        """The probe's name in the run store."""
        return PROBE.name

    @property
    def schema(self) -> type[NeededScaleRow]:
        """The schema of its rows."""
        return NeededScaleRow

    needs = frozenset({ANSWERS, AGAIN})

    def given(self, gives: frozenset[str]) -> "NeededScaleProbe | None":
        return self if self.needs <= gives else None

    @cached_property
    def chosen(self) -> frozenset[Head]:
        """The heads that are scaled alone."""
        pairs = (head.split(".") for head in self.heads)
        return frozenset((int(layer), int(head)) for layer, head in pairs)

    @property
    def names_of_targets(self) -> list[str]:
        """The names of what is multiplied, in the order that it is read in."""
        more = {
            "heads": bool(self.heads),
            "random-heads": self.scale_random_heads,
            "whole-prompt": self.scale_whole_prompt,
        }
        return ["all", *(f"layer-{layer}" for layer in self.layers), *(name for name, asked in more.items() if asked)]

    def targets(self, shape: dict[int, int]) -> list[Target]:
        """Return what is multiplied, of a model with so many heads in each layer."""
        made = {f"layer-{layer}": frozenset((layer, head) for head in range(shape[layer])) for layer in self.layers}
        known = {
            "all": Target("all"),
            "heads": Target("heads", self.chosen),
            "random-heads": Target("random-heads", self.chosen or None, drawn=True),
            "whole-prompt": Target("whole-prompt", whole=True),  # last: it needs no cache
            **{name: Target(name, heads) for name, heads in made.items()},
        }
        return [known[name] for name in self.names_of_targets]

    def check(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase) -> None:
        super().check(model, tokenizer)
        if model is None:
            return
        shape = heads_by_layer(model)
        for layer in self.layers:
            if layer not in shape:
                allowed = ", ".join(map(str, shape)) or "none"
                raise UserError(f"layer {layer}: {type(model).__name__} attends in layers {allowed}; choose among them")
        for layer, head in sorted(self.chosen):
            if head >= shape.get(layer, 0):
                allowed = (
                    f"{layer}.0 to {layer}.{shape[layer] - 1}"
                    if layer in shape
                    else f"layers {', '.join(map(str, shape))}"
                )
                raise UserError(f"head {layer}.{head}: {type(model).__name__} has none; allowed are {allowed}")

    def names(self, sample: Sample) -> list[str]:
        """Return the names of a prompt's rows, one for each thing that is multiplied."""
        return [f"{sample.name}/{name}" for name in self.names_of_targets]

    def scorer(self, reader: Reader) -> Scorer:
        assert reader.model is not None
        return readings_of(reader, self.targets(heads_by_layer(reader.model)), self.seed)

    def branch_scorer(self, reader: Reader) -> BranchScorer:
        assert reader.model is not None
        return branch_readings_of(reader, self.targets(heads_by_layer(reader.model)), self.seed)

    def rows(self, sample: Sample, prompt: Prompt, score: Fields) -> list[Fields]:
        """Return a prompt's rows, one for each thing that is multiplied."""
        read = score.get("readings", {})
        row = self.row(sample, prompt, {key: value for key, value in score.items() if key != "readings"})
        return [
            row | {"sample": f"{sample.name}/{name}", "scaled": name} | read.get(name, {})
            for name in self.names_of_targets
        ]

    def tokens(self, rows: Sequence[Fields]) -> int:
        """Return the tokens of the prompts that stored rows stand for."""
        return sum(row["context_length"] for row in rows if row["scaled"] == "all")

    def note(self, rows: Sequence[Fields]) -> str:
        return super().note([row for row in rows if row["scaled"] == "all"])

    def reads(self, sample: Sample) -> list[int]:
        """Return the tokens of each sequence that a prompt's rows take, about."""
        length = super().reads(sample)[0]
        again = READINGS * (len(self.names_of_targets) - self.scale_whole_prompt)
        return [length, *[min(TAIL, length)] * again, *[length] * (READINGS * self.scale_whole_prompt)]


def make(models: Any, options: NeededScaleOptions, beside: Sequence[Probe] = ()) -> NeededScaleProbe:
    """Return the probe that options ask for. Raises UserError."""
    require(
        options.layers == "all" or not isinstance(options.layers, str),
        "layers",
        options.layers,
        "all, and whole numbers",
    )
    layers = default_layers(models, options.trust_remote_code) if options.layers == "all" else options.layers
    return NeededScaleProbe(
        **parameters_of(models, options),
        layers=tuple(int(layer) for layer in layers),
        heads=tuple(options.heads),
        scale_random_heads=options.scale_random_heads,
        scale_whole_prompt=options.scale_whole_prompt,
    )


PROBE.maker(make)
