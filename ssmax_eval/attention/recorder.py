"""Attention of chosen query rows, taken from the very q and k a layer uses: rows x keys scores, never keys x keys."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError
from .interface import Seen, attention_modules, our_function, visible

# shapes: B batch, N query heads, K key heads, G = N / K query heads of one key head, R chosen rows, T query rows, S keys, H head_dim


def attention_scores(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    scaling: float | None = None,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Return the scores before softmax of the chosen rows, float32 (B, N, R, S), -inf where a row may not look.

    query (B, N, T, H) after RoPE and law, key (B, K, S, H) after RoPE, rows (B, R) indices into T. A row's absolute
    position is S - T + index, and it looks at keys up to there; attention_mask (B, 1 or N, T, S), bool or additive, as
    sdpa takes it, decides instead where it is given. position_bias (B or 1, N or 1, T, S) is added to the scores.
    """
    B, N, T, H = query.shape
    K, S = key.shape[1], key.shape[2]
    R = rows.shape[1]
    chosen = query.gather(2, rows[:, None, :, None].expand(B, N, R, H))
    grouped = chosen.reshape(B, K, N // K * R, H)
    # products of the layer's own dtype, summed in float32 like sdpa's kernels do
    scores = (grouped.float() @ key.float().transpose(-1, -2)).view(B, N, R, S)
    scores = scores * (H**-0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + rows_of(position_bias, rows, S).float()
    if attention_mask is None:
        position = rows + (S - T)
        seen = torch.arange(S, device=key.device) <= position[:, None, :, None]
        return scores.masked_fill(~seen, -math.inf)
    mask = rows_of(attention_mask, rows, S)
    added = scores if mask.dtype == torch.bool else scores + mask.float()
    return added.masked_fill(~visible(mask), -math.inf)


def rows_of(term: Tensor, rows: Tensor, keys: int) -> Tensor:
    """Return the chosen rows (B, R) of a mask or bias (B or 1, N or 1, T, S) as (B, N or 1, R, keys)."""
    B, R = rows.shape
    index = rows[:, None, :, None].expand(B, term.shape[1], R, keys)
    return term[..., :keys].expand(B, -1, -1, -1).gather(2, index)


class Recorder:
    """Reduce every layer's scores of the chosen rows where they arise, and keep what `reduce` makes of them by layer.

    rows (B, R): query rows of the forward to come. reduce: scores, float32 (B, N, R, S), to anything. kept: by the layer's
    index in the decoder, in the order in which layers attended; a layer that attends with something else is not in it.
    """

    def __init__(self, rows: Tensor, reduce: Callable[[Tensor], Any]) -> None:
        self.rows = rows
        self.reduce = reduce
        self.kept: dict[int, Any] = {}
        self.called: list[str] = []  # the attention modules that ran

    def offer(self, layer: int, seen: Seen) -> None:
        """Take what a layer attended with."""
        if layer in self.kept:
            raise UserError(
                f"layer {layer} attends twice in one forward, so its attention is not one set of heads; "
                "use the needle and loss probes"
            )
        self.kept[layer] = self.reduce(self.scores(seen))

    def scores(self, seen: Seen) -> Tensor:
        """Return the scores of the chosen rows."""
        rows = self.rows.to(seen.query.device)
        return attention_scores(seen.query, seen.key, rows, seen.scaling, seen.attention_mask, seen.position_bias)


@contextmanager
def recording(model: PreTrainedModel, recorder: Recorder) -> Iterator[Recorder]:
    """Offer what every attention layer attends with to a recorder while the block runs, through our attention function.

    Raises UserError for a model whose attention our function cannot run.
    """
    running: list[int] = []

    def offer(name: str, seen: Seen) -> None:
        recorder.called.append(name)
        recorder.offer(running[-1] if running else layer_in(name), seen)

    def enter(index: int, *_: Any) -> None:
        running[:] = [index]

    modules = attention_modules(model)
    hooks = [layer.register_forward_pre_hook(partial(enter, i)) for i, layer in enumerate(layer_list(model))]
    try:
        for name, module in modules.items():
            vars(module)["recorder"] = partial(offer, name)  # no submodule, no parameter: a plain attribute
        with our_function(model):
            yield recorder
    finally:
        for hook in hooks:
            hook.remove()
        for module in modules.values():
            vars(module).pop("recorder", None)


def layer_list(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder's list of layers, the one that its attention is in; empty where there is no such list.

    A layer's place in it is its true index: also where other layers do not attend, or several share one attention module.
    """
    names = list(attention_modules(model))
    lists = [
        (sum(name.startswith(f"{prefix}.") for name in names), len(found), found)
        for prefix, found in model.named_modules()
        if isinstance(found, nn.ModuleList)
    ]
    holding = [each for each in lists if each[0]]
    return max(holding, key=lambda each: each[:2])[2] if holding else nn.ModuleList()


def layer_in(name: str) -> int:
    """Return the first number in a module's name, which is its layer's index; 0 where there is none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)
