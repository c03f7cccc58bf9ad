"""Gated linear recurrence: a state of fixed size in place of a map over the keys."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .mechanism import Layer, Mechanism
from .registry import register
from .seen import Seen

CHUNK = 32  # rows that are computed together; memory grows with it, steps fall
EPSILON = 1e-6  # of the norm


@register
class HGRN2(Mechanism):
    """S_i = diag(f_i) S_(i-1) + (1 - f_i) v_i, output SiLU(q_i) S_i: a recurrence, f = lower + (1 - lower) sigmoid(k).

    f, a forget gate for every channel, is made of the layer's keys. Its lower bound rises with depth, from 0 in the first layer:
    the shares of a softmax over all layers, learned and equal at first, summed up to the layer's own. The output goes through
    RMSNorm over all heads. There is no map over the keys, so masses do not apply (HGRN2, arXiv 2404.07904; BabyHGRN, 2412.15978).
    """

    name = "hgrn2"
    reference = "Qin et al., HGRN2, arXiv 2404.07904; Haller et al., BabyHGRN, arXiv 2412.15978"
    choices = (
        "q, k and v are the block's own projections, grouped heads share a state; no short convolution; q through SiLU is the "
        "output gate, as in the flash-linear-attention code; the norm has no weights; a model with QK-norm normalises gates too"
    )
    causal_only = True
    swap = False
    cache = "whole"
    has_map = False
    position = "nope"
    undecayed = ("bounds",)

    def __init__(self, layer: Layer, *, first: "HGRN2 | None" = None) -> None:
        super().__init__(layer)
        bounds = nn.Parameter(torch.zeros(layer.layers, layer.key_heads * layer.head_dim, dtype=torch.float32))
        self.bounds: nn.Parameter = bounds if first is None else first.bounds  # one table for all layers

    @property
    def lower(self) -> Tensor:
        """The lower bound of the forget gate, float32 (key heads, 1, channels)."""
        shares = self.bounds.float().softmax(0)
        # the first layer has none
        return shares[1 : self.layer.index + 1].sum(0).view(self.layer.key_heads, 1, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen, keep: Tensor | None) -> tuple[Tensor, None, None]:
        there = seen.there[:, None, :, None]
        lower = self.lower.to(k.device, k.dtype)
        log_f = (lower + (1 - lower) * k.sigmoid()).clamp(min=torch.finfo(k.dtype).tiny).log().masked_fill(~there, 0.0)
        key = ((1 - lower) * (-k).sigmoid()).masked_fill(~there, 0.0)
        gate = nn.functional.silu(q)
        mixed = scan(gate.unflatten(1, (k.shape[1], -1)), key, v, log_f).flatten(1, 2)
        # the norm is over a row's heads and channels together
        out = mixed * (mixed.square().mean((1, 3), keepdim=True) + EPSILON).rsqrt()
        return out.masked_fill(~there, 0.0), None, None


def scan(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
    """Return q_i S_i (batch, key heads, group, rows, width) with S_i = diag(f_i) S_(i-1) + k_i v_i, S before the first row 0.

    q (batch, key heads, group, rows, channels); k, log_f (batch, key heads, rows, channels), log_f <= 0; v (batch, key heads, rows, width).
    """
    state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    parts = []
    for start in range(0, k.shape[2], CHUNK):
        at = slice(start, start + CHUNK)
        inputs = (q[:, :, :, at], k[:, :, at], v[:, :, at], log_f[:, :, at], state)
        out, state = checkpoint(step, *inputs, use_reentrant=False) if torch.is_grad_enabled() else step(*inputs)
        parts.append(out)
    return torch.cat(parts, 3)


def step(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return a chunk's outputs and the state after it. Only what is left of a key is ever an exponential, so none exceeds 1."""
    passed = log_f.cumsum(2)
    rows = torch.arange(k.shape[2], device=k.device)
    ahead = (rows[:, None] < rows)[..., None]
    left = (passed[:, :, :, None] - passed[:, :, None]).masked_fill(ahead, -torch.inf).exp()
    weights = torch.einsum("bkgid,bkjd,bkijd->bkgij", q, k, left)
    before = torch.einsum("bkgid,bkdw->bkgiw", q * passed.exp()[:, :, None], state)
    out = before + torch.einsum("bkgij,bkjw->bkgiw", weights, v)
    until_end = k * (passed[:, :, -1:] - passed).exp()
    state = passed[:, :, -1].exp()[..., None] * state + until_end.transpose(-1, -2) @ v
    return out, state
