"""One model to train, and what decides its weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..mechanisms.spelling import Attention
from ..models.mechanism_code import code_source
from ..models.sources import resolve
from ..position.bias import biases
from .architecture import check_position
from .recipes import Recipe

SHAPE = (
    "blocks", "qk_norm", "layers", "hidden", "heads", "feed_forward", "vocabulary", "position", "rope_theta", "init_std",
)  # fields of a recipe that a model to start from already has  # fmt: skip

LATER = ("blocks", "mixed_lengths", "mask_share")  # fields that recipes of before did not have


@dataclass(frozen=True)
class Job:
    """One model to train. attention: the mechanism it trains with; None is softmax, or what the model at `start` carries.

    swap_to: a mechanism that replaces softmax for the last swap_fraction of the steps. start: a model to go on from, its
    tokenizer with it; None starts from scratch.
    """

    recipe: Recipe
    attention: str | None = None
    swap_to: str | None = None
    swap_fraction: float = 0.125
    seed: int = 0
    start: str | None = None

    def __post_init__(self) -> None:
        if self.attention is None and self.start is None:
            object.__setattr__(self, "attention", "softmax")
        if self.attention is not None:
            object.__setattr__(self, "attention", str(Attention.of(self.attention)))
        if not 0 < self.swap_fraction < 1:
            raise UserError(f"swap fraction {self.swap_fraction:g}: allowed are numbers between 0 and 1")
        if self.swap_to is not None:
            object.__setattr__(self, "swap_to", str(Attention.of(self.swap_to)))
            if self.attention != "softmax":
                raise UserError(f"attention {self.attention!r} with a swap: a swap starts from softmax; say so")
            if not 1 <= round(self.recipe.steps * self.swap_fraction) < self.recipe.steps:
                raise UserError(
                    f"swap fraction {self.swap_fraction:g}: of {self.recipe.steps} steps it leaves none before or after the "
                    "swap; give more steps or another fraction"
                )
        for each in (self.attention, self.swap_to):
            if each is not None and self.start is None:
                check_position(each, self.recipe.position)
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed}: allowed are whole numbers from 0 to {2**32 - 1}")

    @property
    def name(self) -> str:
        """A folder's name: recipe, mechanism, how it came in, seed."""
        mechanism = (self.swap_to or self.attention or "same").replace(":", "-").replace(",", "-")
        return f"{self.recipe.name}-{mechanism}{'-late' if self.swap_to else ''}-s{self.seed}"

    def key(self, text_sha256: str) -> dict[str, Any]:
        """Return what decides the weights, in JSON's types; of a path only the name, which is what says something elsewhere."""
        key = asdict(self) | {"text_sha256": text_sha256, "start": self.start and resolve(self.start).fingerprint}
        for name in LATER:  # a model of before is still the one that it was
            if key["recipe"][name] == getattr(Recipe, name):
                del key["recipe"][name]
        # code of a user's own decides weights too; of this package's own nothing is said, as before there was any other
        asked = [Attention.of(each).mechanism for each in (self.attention, self.swap_to) if each is not None]
        code = [code_source(each) for each in (*asked, biases().get(self.recipe.position))]
        if any(code):
            key["code"] = code
        if Path(self.recipe.text).exists():
            key["recipe"]["text"] = Path(self.recipe.text).name
        if self.start is not None:  # the model at start has the shape it has
            key["recipe"] = {name: value for name, value in key["recipe"].items() if name not in SHAPE}
        return json.loads(json.dumps(key))
