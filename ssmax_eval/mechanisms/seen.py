"""What rows of a layer see: mask, number of visible keys, positions and distances, computed for the rows that are asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

# an additive term of this or less leaves no weight: e^-104 is 0 in float32
BLOCKED = -104.0


class once:
    """functools.cached_property without its lock, which torch.compile cannot enter (Python 3.11)."""

    def __init__(self, compute: Callable[[Any], Tensor]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        if owner is None:
            return self
        value = owner.__dict__[self.name] = self.compute(owner)
        return value


def visible(attention_mask: Tensor) -> Tensor:
    """Return which keys an attention mask lets a row see, bool: those it does not block, whatever number blocks."""
    return attention_mask if attention_mask.dtype == torch.bool else attention_mask > BLOCKED


@dataclass(frozen=True)
class Forward:
    """What one layer attends with in one forward, as sdpa gets it.

    rows, keys: how many. attention_mask (batch, 1 or heads, rows, keys), bool or additive, or None. causal: whether sdpa,
    without a mask, lets row i see keys 0 to i. position_bias (batch or 1, heads or 1, rows, keys): what the model adds to its
    scores beside the mask. scaling: of the product. input (batch, rows, width): of the layer, None unless it is asked for.
    dropout: of the weights, above 0 in training only. before: keys in front of the first row's own, where no mask says so.
    """

    rows: int
    keys: int
    attention_mask: Tensor | None
    causal: bool
    device: torch.device
    scaling: float
    position_bias: Tensor | None = None
    input: Tensor | None = None
    dropout: float = 0.0
    before: int = 0


class Seen:
    """What some rows of a forward see; `rows` is a slice of them, or indices (batch, chosen).

    carry: what a mechanism left for later blocks of rows; a new dict for each.
    """

    def __init__(self, forward: Forward, rows: slice | Tensor = slice(None)) -> None:
        self.forward = forward
        self.rows = rows
        self.carry: dict[str, Tensor] = {}

    def block(self, start: int, stop: int, keys: int) -> "Seen":
        """Return what rows start to stop - 1 see of the first `keys` keys."""
        return Seen(replace(self.forward, keys=keys), slice(start, stop))

    @property
    def is_triangle(self) -> bool:
        """Whether row i sees keys 0 to i, and no mask says so."""
        given = self.forward
        return given.attention_mask is None and given.causal and given.rows == given.keys > 1

    @property
    def is_two_way(self) -> bool:
        """Whether rows see what comes after them, as an encoder's do."""
        return not self.forward.causal and self.forward.rows == self.forward.keys

    def at(self, rows: Tensor) -> "Seen":
        """Return what chosen rows (batch, chosen) see."""
        return Seen(self.forward, rows)

    @property
    def scaling(self) -> float:
        """What the product of q and k is multiplied with, 1 / sqrt(head_dim) unless the model says otherwise."""
        return self.forward.scaling

    @once
    def n(self) -> Tensor:
        """How many keys each row sees, float32 (batch or 1, heads or 1, rows), at least 1."""
        return visible_keys(self)

    @once
    def index(self) -> Tensor:
        """The rows' indices, int64 (batch or 1, rows)."""
        if isinstance(self.rows, Tensor):
            return self.rows
        return torch.arange(self.forward.rows, device=self.forward.device)[self.rows][None]

    @once
    def mask(self) -> Tensor:
        """Which keys each row sees, bool (batch or 1, heads or 1, rows, keys)."""
        given = self.forward
        if given.attention_mask is not None:
            return visible(self.of(given.attention_mask))
        keys = torch.arange(given.keys, device=given.device)
        if given.rows == 1 or not given.causal:
            return (keys >= 0).expand(*self.index.shape, -1)[:, None]
        # sdpa's causal flag aligns the first row with the first key
        return (keys <= self.index[..., None] + given.before)[:, None]

    @once
    def position(self) -> Tensor:
        """Which key is each row's own, int64 (batch or 1, rows): the last that it sees, or that of its index where it sees all."""
        if self.is_two_way:
            return self.index
        return self.forward.keys - 1 - self.mask.any(1).flip(-1).int().argmax(-1)

    @once
    def there(self) -> Tensor:
        """Which tokens of a whole sequence are no padding, bool (batch or 1, keys).

        Raises UserError where rows do not see all of them up to their own, as in packed sequences.
        """
        given = self.forward
        if given.attention_mask is None:
            return torch.ones(1, given.keys, dtype=torch.bool, device=given.device)
        own = given.attention_mask[..., : given.keys].diagonal(dim1=-2, dim2=-1)
        there = visible(own).any(1)
        seen = visible_keys(Seen(given))[:, 0]
        if not torch.equal(seen.where(there, 0), there.cumsum(-1).where(there, 0).float()):
            raise UserError(
                "attention of whole sequences: rows have to see all before them; packed sequences are refused"
            )
        return there

    @once
    def distance(self) -> Tensor:
        """How far each key lies before a row's own, float32 (batch or 1, 1, rows, keys) >= 0; 0 for keys after it.

        In an encoder: how far from it, on either side.
        """
        keys = torch.arange(self.forward.keys, device=self.forward.device)
        before = (self.position[..., None] - keys)[:, None]
        return (before.abs() if self.is_two_way else before.clamp(min=0)).float()

    @property
    def input(self) -> Tensor | None:
        """The layer's input in these rows, (batch, rows, width), for mechanisms that need it."""
        given = self.forward.input
        if given is None or not isinstance(self.rows, Tensor):
            return None if given is None else given[:, self.rows]
        return given.gather(1, self.rows[..., None].expand(-1, -1, given.shape[-1]))

    def of(self, term: Tensor) -> Tensor:
        """Return these rows of a mask or bias (batch or 1, heads or 1, rows, keys or more)."""
        keys = self.forward.keys
        if not isinstance(self.rows, Tensor):
            return term[:, :, self.rows, :keys]
        batch, chosen = self.rows.shape
        index = self.rows[:, None, :, None].expand(batch, term.shape[1], chosen, keys)
        return term[..., :keys].expand(batch, -1, -1, -1).gather(2, index)

    def added(self, scores: Tensor) -> Tensor:
        """Return scores (batch, heads, rows, keys) with what the model adds to them."""
        given = self.forward
        if given.position_bias is not None:
            scores = scores + self.of(given.position_bias).float()
        if given.attention_mask is not None and given.attention_mask.dtype != torch.bool:
            scores = scores + self.of(given.attention_mask).float()
        return scores


def visible_keys(seen: Seen) -> Tensor:
    """Count the keys that sdpa lets each row see: float32 (batch or 1, heads or 1, rows), at least 1."""
    given = seen.forward
    if given.attention_mask is not None:
        mask = seen.mask
        if given.attention_mask.dtype != torch.bool:  # a bias of one head may hide what the others see
            mask = mask.any(1, keepdim=True)
        # rows of padding see nothing; 1 keeps their ln n finite
        return mask.sum(-1, dtype=torch.int32).clamp(min=1).float()  # int64 sums of bools take 40 times as long
    if given.rows == 1 or not given.causal:
        return torch.full((1, 1, seen.index.shape[-1]), given.keys, dtype=torch.float32, device=given.device)
    return (seen.index + 1 + given.before).float()[:, None]


def forward_of(module: Any, query: Tensor, key: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Forward:
    """Return what an attention module is about to attend with, of what it hands to its attention function."""
    causal = kwargs.get("is_causal")
    scaling = kwargs.get("scaling")
    return Forward(
        rows=query.shape[2],
        keys=key.shape[2],
        attention_mask=attention_mask,
        causal=getattr(module, "is_causal", True) if causal is None else causal,
        device=query.device,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        position_bias=kwargs.get("position_bias"),
        input=vars(module).pop("layer_input", None),
        dropout=float(kwargs.get("dropout") or 0.0),
        before=kwargs.get("before", 0),
    )
