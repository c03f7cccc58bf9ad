"""Position as a bias: a term that hangs on head and distance, added to the scores before any mechanism.

Adding one is one class:

    from ssmax_eval.position.bias import Bias, register_bias

    @register_bias
    class Linear(Bias):
        "-distance for every head"
        name = "linear"

        def forward(self, distance):
            return -distance
"""

import importlib
import math
import pkgutil
from functools import cache
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UserError


class Bias(nn.Module):
    """Add to the scores of one attention layer by distance. heads: query heads of the layer.

    What a class says of itself: name, its spelling; reference, where it is from; choices, what that leaves open and is ours;
    swap, whether a model that was trained without it can take it, or has to be trained with it from scratch.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str] = ""
    choices: ClassVar[str] = ""
    swap: ClassVar[bool] = True
    active: bool = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, distance: Tensor) -> Tensor:
        """Return what is added, float32 (batch or 1, heads or 1, rows, keys), of distances (batch or 1, 1, rows, keys) in tokens."""
        raise NotImplementedError

    def learned(self) -> dict[str, list[float]]:
        """Return what a record tells of what was learned: values by name, one for each head."""
        return {
            key: p.detach().float().tolist()
            for key, p in self.named_parameters()
            if p.ndim == 1 and len(p) == self.heads
        }


TAKEN = ("rope", "p-rope", "nope", "learned")  # names of positions that are no bias

BIASES: dict[str, type[Bias]] = {}  # all of them only once biases() ran
SomeBias = TypeVar("SomeBias", bound=type[Bias])


def register_bias(bias: SomeBias) -> SomeBias:
    """Make a bias selectable by its name: `--position NAME`. Raises UserError for a class without a name, and a name that is taken."""
    name = vars(bias).get("name")
    known = BIASES.get(name) if isinstance(name, str) else None
    ours = __name__.partition(".")[0] + "."
    taken = known is not None and known.__module__.startswith(ours) and not bias.__module__.startswith(ours)
    if not isinstance(name, str) or not name or name in TAKEN or taken:
        raise UserError(f"position {bias.__name__}: its name {name!r} is none, or taken; give it another")
    bias.summary = (bias.__doc__ or "").strip().partition("\n")[0]
    BIASES[name] = bias
    return bias


def biases() -> dict[str, type[Bias]]:
    """Return every bias by name: those of the files beside this one, and those that others registered."""
    beside()
    return BIASES


@cache
def beside() -> None:
    """Import every file beside this one: a new bias is one."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{package}.{module.name}")


@register_bias
class ALiBi(Bias):
    """-slope t, t the distance in tokens, slopes 2^(-8 h / heads) for h = 1..heads (arXiv 2108.12409).

    For numbers of heads that are no power of two: those of the next lower power, then every other one of the next higher
    (the authors' code, and transformers' BLOOM).
    """

    name = "alibi"
    reference = "arXiv 2108.12409"

    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        self.slopes = slopes(heads)

    def forward(self, distance: Tensor) -> Tensor:
        return -torch.tensor(self.slopes, device=distance.device)[:, None, None] * distance


@register_bias
class T5(Bias):
    """b[bucket of t] of each head, learned; near distances have a bucket each, far ones share them (arXiv 1910.10683).

    The buckets are those of T5's decoder, which looks back only: half of `buckets` for the distances 0, 1, 2, ..., the others
    in equal steps of ln t up to `furthest` tokens, and the last for all beyond. Other numbers are a subclass with its own name.
    """

    name = "t5"
    reference = "arXiv 1910.10683"
    choices = (
        "a table for each layer, as UMT5 has (T5 shares one); first values 0 (T5 draws them with a standard deviation of "
        "1 / sqrt(width), next to nothing beside a score): the same for every seed and mechanism, and no position at first"
    )
    swap = False
    buckets: ClassVar[int] = 32
    furthest: ClassVar[int] = 128

    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        self.table = nn.Parameter(torch.zeros(self.buckets, heads))

    def forward(self, distance: Tensor) -> Tensor:
        # an embedding's gradient is summed faster than that of an indexed table
        return nn.functional.embedding(self.bucket(distance).squeeze(1), self.table.float()).permute(0, 3, 1, 2)

    def learned(self) -> dict[str, list[float]]:
        table = self.table.detach().float()
        return {"nearest": table[0].tolist(), "furthest": table[-1].tolist()}

    def bucket(self, distance: Tensor) -> Tensor:
        """Return the bucket of each distance, int64, 0 to buckets - 1."""
        near = self.buckets // 2
        share = (distance.clamp(min=near) / near).log() / math.log(self.furthest / near)
        far = near + (share * (self.buckets - near)).long()
        return torch.where(distance < near, distance.long(), far.clamp(max=self.buckets - 1))


class NoPosition(Bias):
    """Nothing, where the blocks themselves cannot say that a model has no position: a table of positions taken out."""

    name = "nope"
    active = False

    def forward(self, distance: Tensor) -> Tensor:
        return torch.zeros_like(distance)


def slopes(heads: int) -> list[float]:
    """Return ALiBi's slope of each head."""
    power = 1 << (heads.bit_length() - 1)
    own = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * power, 2)]
    return own + between[: heads - power]
