"""Attention of chosen query rows, taken from the very q and k a layer uses: rows x keys scores, never keys x keys."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .interface import IMPLEMENTATION, attention_modules

# shapes: B batch, N query heads, K key heads, G = N / K query heads of one key head, R chosen rows, T query rows, S keys, H head_dim


def attention_scores(
    query: Tensor, key: Tensor, rows: Tensor, scaling: float | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """Return the scores before softmax of the chosen rows, float32 (B, N, R, S), -inf where a row may not look.

    query (B, N, T, H) after RoPE and law, key (B, K, S, H) after RoPE, rows (B, R) indices into T. A row's absolute
    position is S - T + index, and it looks at keys up to there; attention_mask (B, 1 or N, T, S), bool or additive, as
    sdpa takes it, decides instead where it is given.
    """
    B, N, T, H = query.shape
    K, S = key.shape[1], key.shape[2]
    R = rows.shape[1]
    chosen = query.gather(2, rows[:, None, :, None].expand(B, N, R, H))
    grouped = chosen.reshape(B, K, N // K * R, H)
    # products of the layer's own dtype, summed in float32 like sdpa's kernels do
    scores = (grouped.float() @ key.float().transpose(-1, -2)).view(B, N, R, S)
    scores = scores * (H**-0.5 if scaling is None else scaling)
    if attention_mask is None:
        position = rows + (S - T)
        seen = torch.arange(S, device=key.device) <= position[:, None, :, None]
        return scores.masked_fill(~seen, -math.inf)
    index = rows[:, None, :, None].expand(B, attention_mask.shape[1], R, S)
    mask = attention_mask[..., :S].expand(B, -1, -1, -1).gather(2, index)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    return scores + mask.float().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -math.inf)


class Recorder:
    """Reduce every layer's scores of the chosen rows where they arise, and keep what `reduce` makes of them by layer.

    rows (B, R): query rows of the forward to come. reduce: scores, float32 (B, N, R, S), to anything.
    """

    def __init__(self, rows: Tensor, reduce: Callable[[Tensor], Any]) -> None:
        self.rows = rows
        self.reduce = reduce
        self.kept: dict[str, Any] = {}

    def offer(
        self, name: str, query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float | None
    ) -> None:
        """Take what layer `name` is about to attend with."""
        rows = self.rows.to(query.device)
        self.kept[name] = self.reduce(attention_scores(query, key, rows, scaling, attention_mask))


@contextmanager
def recording(model: PreTrainedModel, recorder: Recorder) -> Iterator[Recorder]:
    """Offer q and k of every attention layer to a recorder while the block runs; the model must run through our function."""
    assert model.config._attn_implementation == IMPLEMENTATION, "attention that is not ours offers nothing"
    modules = attention_modules(model)
    try:
        for name, module in modules.items():
            vars(module)["recorder"] = partial(recorder.offer, name)  # no submodule, no parameter: a plain attribute
        yield recorder
    finally:
        for module in modules.values():
            vars(module).pop("recorder", None)
