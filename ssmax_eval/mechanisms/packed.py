"""Several texts in one forward without padding, each behind as much of one beginning as it shares: the trunk, read before.

The rows of a pack lie one behind the other. What a model does row by row (projections, norms, feed-forward layers) does not
notice; attention, which does, is told here where each text starts and which of the trunk's keys it sees. No cache is joined or
cropped, and no mask of rows x keys is made. What else looks from row to row (convolutions, recurrences) would notice:
readers.forked compares before it reads so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ..errors import UserError
from .behind import Pair, behind
from .implementation import PACKED, our_function
from .interface import Watched, attention_forward, named_in_errors, refuse_narrowed, standing
from .layers import attention_modules
from .mechanism import Mechanism
from .recorder import Recorded, Recorder
from .seen import Seen, forward_of

ROWS_IN_WINDOW = 512  # at least, that are attended together on a layer with a window


# tells of positions whether they are seen: (batch, head, row, key) as transformers has it; and the window that it is told of
Mask = tuple[Callable[..., Tensor] | None, int | None]


class Segment(NamedTuple):
    """One text of a pack: its rows [start, stop), and how many of the trunk's tokens are in front of them."""

    start: int
    stop: int
    before: int


class Pack:
    """What one forward reads. trunk: keys and values by attention module. keeps: whether its own are wanted, in `kept`.

    recorders: one for each segment, whose rows (1, chosen) count from the segment's first; [] for none.
    """

    def __init__(
        self,
        segments: list[Segment],
        trunk: dict[str, Pair],
        keeps: bool = False,
        recorders: list[Recorder] | None = None,
    ) -> None:
        self.segments, self.trunk, self.keeps, self.recorders = segments, trunk, keeps, recorders or []
        self.kept: dict[str, Pair] = {}
        self.at = 0  # the segment that attends
        self.masks: list[Mask] = []  # what the model would have masked with


class Recorders(Recorder):
    """Hand what a layer did to the recorder of the segment that attends."""

    def __init__(self, pack: Pack) -> None:
        super().__init__(torch.empty(1, 0, dtype=torch.int64), lambda recorded: None)
        self.pack = pack

    def offer(self, layer: int, recorded: Recorded) -> None:
        self.pack.recorders[self.pack.at].offer(layer, recorded)


class Place(NamedTuple):
    """What a pack leaves at an attention module: itself, and the module's name."""

    pack: Pack
    name: str


@named_in_errors
def packed_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend as a layer's mechanism does, each text of a pack for itself.

    query (1, heads, rows, head_dim); key, value (1, key heads, rows, head_dim). Returns the output (1, rows, heads, head_dim).
    Raises UserError for a mask or bias of the model's own.
    """
    pack, name = vars(module)["pack"]
    if attention_mask is not None or kwargs.get("position_bias") is not None:
        raise UserError("attention in packs: the model brings a mask or a bias of its own")
    watched: Watched | None = vars(module).get("watched")
    x: Tensor | None = vars(module).pop("layer_input", None)
    parts = []
    for at, (start, stop, before) in enumerate(pack.segments):
        pack.at = at
        own = key[:, :, start:stop], value[:, :, start:stop]
        front: Pair | None = None
        if before:
            keys, values = pack.trunk[name]
            front = keys[:, :, :before], values[:, :, :before]
        if x is not None:
            vars(module)["layer_input"] = x[:, start:stop]
        if watched is not None:
            vars(module)["watched"] = Watched(pack.recorders[at].rows, watched.offer)
        parts.append(one(module, query[:, :, start:stop], own, front, kwargs))
    if watched is not None:
        vars(module)["watched"] = watched
    if pack.keeps:
        pack.kept[name] = key.contiguous(), value.contiguous()
    return torch.cat(parts, 1), None


def one(module: nn.Module, query: Tensor, own: Pair, front: Pair | None, given: dict[str, Any]) -> Tensor:
    """Return the output (1, rows, heads, head_dim) of one text behind what it sees of the trunk."""
    rows, before = query.shape[2], 0 if front is None else front[0].shape[2]
    carried, mechanism, biased = standing(module, before + rows, given)
    quick = not biased and mechanism.runs_on_sdpa() and "edit" not in vars(module)
    window = given.get("sliding_window")
    if window and before + rows > window:
        return windowed(module, query, joined(front, own), window, quick and "watched" not in vars(module), given)
    if front is None:
        return attention_forward(module, query, *own, None, **given)[0]
    if quick and type(mechanism).key is Mechanism.key and "watched" not in vars(module):
        seen = Seen(replace(forward_of(module, query, own[0], None, **given), keys=before + rows, before=before))
        if carried is not None:
            refuse_narrowed(mechanism, seen, window)
        with torch.autocast(query.device.type, enabled=False):
            query = mechanism.query(query, seen)
        return behind(query, front, own, seen.scaling).transpose(1, 2)
    return attention_forward(module, query, *joined(front, own), None, before=before, **given)[0]


def windowed(
    module: nn.Module, query: Tensor, pair: Pair, window: int, in_blocks: bool, given: dict[str, Any]
) -> Tensor:
    """Return the output of rows of which each sees the last `window` keys up to its own; in blocks, without the others."""
    rows, keys = query.shape[2], pair[0].shape[2]
    size = max(window, ROWS_IN_WINDOW) if in_blocks else rows
    x: Tensor | None = vars(module).pop("layer_input", None)
    parts = []
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        last = keys - rows + stop  # of the keys that the block sees, and the first of them
        first = max(0, last - (stop - start) - window + 1) if in_blocks else 0
        own = torch.arange(last - (stop - start), last, device=query.device)[:, None]
        at = torch.arange(first, last, device=query.device)
        mask = ((at <= own) & (at > own - window))[None, None]
        if x is not None:
            vars(module)["layer_input"] = x[:, start:stop]
        seen = (each[:, :, first:last] for each in pair)
        parts.append(attention_forward(module, query[:, :, start:stop], *seen, mask, **given)[0])
    return torch.cat(parts, 1)


def joined(front: Pair | None, own: Pair) -> Pair:
    if front is None:
        return own
    return torch.cat([front[0], own[0]], 2), torch.cat([front[1], own[1]], 2)


AttentionInterface.register(PACKED, packed_forward)
READ: list[Pack] = []  # the pack that is read now, if one is


def no_mask(*given: Any, **options: Any) -> None:
    """Make none: which texts see what, the pack says. What the model would have made is kept, to be looked at before."""
    if READ:
        READ[-1].masks.append((options.get("mask_function"), options.get("local_size")))


AttentionMaskInterface.register(PACKED, no_mask)


def is_causal(mask: Mask, longest: int) -> bool:
    """Tell whether a mask hides what comes later, and what lies behind its window, and nothing else, up to `longest` tokens."""
    function, window = mask
    if function is None:
        return False
    keys, none = torch.arange(longest), torch.tensor(0)
    for row in sorted({longest - 1, longest // 2, longest // 3}):
        shown = (keys <= row) & (keys > row - window if window else keys >= 0)
        try:
            if not torch.equal(function(none, none, torch.tensor(row), keys).expand(longest), shown):
                return False
        except Exception:  # made for this input alone
            return False
    return True


@contextmanager
def packed(model: PreTrainedModel, pack: Pack) -> Iterator[None]:
    """Run a block whose forwards read a pack. Raises UserError for a model whose attention our function cannot run."""
    modules = attention_modules(model)
    try:
        for name, module in modules.items():
            vars(module)["pack"] = Place(pack, name)
        READ.append(pack)
        with our_function(model, PACKED):
            yield
    finally:
        READ.remove(pack)
        for module in modules.values():
            vars(module).pop("pack", None)
