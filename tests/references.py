"""Naive float64 references of the attention mechanisms, written apart from ssmax_eval.

Everything is spelled out from the papers' formulas, whole maps at a time, with no thought of speed.
Scores are (batch, heads, rows, keys); `seen` is True where a row may look at a key and broadcasts
to the scores; a row that sees nothing gets zeros.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Mapping = Callable[[Tensor, Tensor], Tensor]


def softmax_map(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax over the keys seen.

    Source: Vaswani et al., arXiv 1706.03762.
    """
    scores, seen = _full(scores, seen)
    shares = torch.where(seen, (scores - _top(scores, seen)).exp(), 0.0)
    total = shares.sum(-1, keepdim=True)
    return shares / torch.where(total > 0, total, 1.0)


def softmax1_map(scores: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    """Softmax over [scores, the head's sink] with the sink's share dropped; sink is (heads,).

    Source: Miller, "Attention Is Off By One", evanmiller.org, 2023 (softmax1, whose sink is 0);
    GPT-OSS's model card, arXiv 2508.10925 (a learned one for each head).
    """
    scores, seen = _full(scores, seen)
    sink = sink.double().reshape(1, -1, 1, 1)
    top = torch.maximum(_top(scores, seen), sink)
    shares = torch.where(seen, (scores - top).exp(), 0.0)
    return shares / (shares.sum(-1, keepdim=True) + (sink - top).exp())


def entmax15_map(scores: Tensor, seen: Tensor) -> Tensor:
    """1.5-entmax, max(z / 2 - tau, 0)^2, with its tau found exactly from each row's sorted scores.

    Source: Peters, Niculae & Martins, arXiv 1905.05702.
    """
    scores, seen = _full(scores, seen)
    out = torch.zeros_like(scores)
    for row in itertools.product(*(range(size) for size in scores.shape[:-1])):
        if seen[row].any():
            half = scores[row][seen[row]] / 2
            half = half - half.max()
            out[row][seen[row]] = (half - _threshold15(half)).clamp(min=0) ** 2
    return out


def _threshold15(half: Tensor) -> Tensor:
    """The tau with sum max(half - tau, 0)^2 = 1.

    Each size of the support gives a quadratic in tau; the right size is the largest one whose tau
    still leaves its smallest member in.
    """
    ordered = half.sort(descending=True).values
    tau = ordered[0] - 1
    for size in range(2, len(ordered) + 1):
        head = ordered[:size]
        mean = head.mean()
        # size (mean - tau)^2 + sum (head - mean)^2 = 1, at its lower root
        rest = 1 - ((head - mean) ** 2).sum()
        if rest < 0 or mean - (rest / size).sqrt() > head[-1]:
            break
        tau = mean - (rest / size).sqrt()
    return tau


def entmax_map(scores: Tensor, seen: Tensor, alpha: float) -> Tensor:
    """Alpha-entmax, max((alpha - 1) z - tau, 0)^(1 / (alpha - 1)), any alpha > 1, tau by bisection.

    Source: Peters, Niculae & Martins, arXiv 1905.05702; alpha 2 is the sparsemax of Martins &
    Astudillo, arXiv 1602.02068.
    """
    scores, seen = _full(scores, seen)
    scaled = torch.where(seen, (alpha - 1) * (scores - _top(scores, seen)), -math.inf)
    # the largest score is now 0, so that tau is -1 where it is alone and nearer to 0 with company
    low = torch.full_like(scaled[..., :1], -1.0)
    high = torch.zeros_like(low)
    for _ in range(100):
        tau = (low + high) / 2
        above = ((scaled - tau).clamp(min=0) ** (1 / (alpha - 1))).sum(-1, keepdim=True) >= 1
        low = torch.where(above, tau, low)
        high = torch.where(above, high, tau)
    out = (scaled - low).clamp(min=0) ** (1 / (alpha - 1))
    return torch.where(seen.any(-1, keepdim=True), out, 0.0)


def ssmax_scale(n: Tensor | float, s: Tensor | float, b: Tensor | float = 0.0) -> Tensor:
    """What multiplies the scores of a row that sees n keys, s ln n + b; the three broadcast.

    Source: Nakanishi, arXiv 2501.19399 (SSMax, where b is 0).
    """
    n, s, b = (torch.as_tensor(value, dtype=torch.float64) for value in (n, s, b))
    return s * n.log() + b


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    mapping: Mapping,
    seen: Tensor,
    bias: Tensor | None = None,
    query_scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """The output (batch, rows, heads, width) and the map of attention with grouped keys.

    The map is mapping(scaling * (query_scale * q) . k + bias, seen). `query_scale` is a number or
    broadcasts to (batch, heads, rows, 1); `bias` broadcasts to the scores and is scaled by neither.

    Source: Vaswani et al., arXiv 1706.03762; grouped keys: Ainslie et al., arXiv 2305.13245.
    """
    q, k, v = q.double(), k.double(), v.double()
    if query_scale is not None:
        query_scale = torch.as_tensor(query_scale, dtype=torch.float64)
        assert query_scale.ndim == 0 or query_scale.shape[-1] == 1, "one scale for a whole query"
        q = query_scale * q
    group = _group(q, k)
    heads = range(q.shape[1])
    scores = [scaling * q[:, head] @ k[:, head // group].transpose(-1, -2) for head in heads]
    scores = torch.stack(scores, dim=1)
    if bias is not None:
        scores = scores + bias.double()
    weights = mapping(scores, seen)
    out = [weights[:, head] @ v[:, head // group] for head in heads]
    return torch.stack(out, dim=2), weights


def differential(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    seen: Tensor,
    lambda_q1: Tensor,
    lambda_k1: Tensor,
    lambda_q2: Tensor,
    lambda_k2: Tensor,
    depth: int,
    eps: float = 1e-5,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output (batch, rows, heads, width) and the map A1 - lambda A2 of differential attention.

    Heads i and i + heads / 2 are a pair, and `depth` counts the layers from 0. The output holds the
    two halves of a pair's 2 * width one after the other, as DiffLlama's o_proj takes them; the map
    is (batch, heads / 2, rows, keys).

    Source: Ye et al., arXiv 2410.05258, in the layout of transformers' DiffLlama.
    """
    batch, heads, rows, width = q.shape
    pairs, group = heads // 2, _group(q, k)
    start = 0.8 - 0.6 * math.exp(-0.3 * depth)
    lambda1 = (lambda_q1.double() * lambda_k1.double()).sum().exp()
    lambda2 = (lambda_q2.double() * lambda_k2.double()).sum().exp()
    each = attention(q, k, v, scaling, softmax_map, seen, bias)[1]
    weights = each[:, :pairs] - (lambda1 - lambda2 + start) * each[:, pairs:]
    out = []
    for pair in range(pairs):
        first, second = pair // group, (pair + pairs) // group
        mixed = weights[:, pair] @ torch.cat([v[:, first], v[:, second]], dim=-1).double()
        mixed = mixed / (mixed.square().mean(-1, keepdim=True) + eps).sqrt()
        out.append((1 - start) * mixed)
    return torch.stack(out, dim=2).reshape(batch, rows, heads, width), weights


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi's slope of each head, 2^(-8 i / heads) for i from 1.

    Other numbers than powers of two take the slopes of the power below, then every other one of
    those of twice that power.

    Source: Press, Smith & Lewis, arXiv 2108.12409, and for other numbers than powers of two their
    fairseq/models/transformer.py in github.com/ofirpress/attention_with_linear_biases.
    """
    below = 2 ** (heads.bit_length() - 1)
    exponents = [8 * i / below for i in range(1, below + 1)]
    exponents += [8 * i / (2 * below) for i in range(1, 2 * below + 1, 2)]
    return torch.tensor([2.0**-exponent for exponent in exponents[:heads]], dtype=torch.float64)


def alibi_bias(heads: int, rows: int, keys: int) -> Tensor:
    """ALiBi's bias -slope * distance, (heads, rows, keys), with the last row at the last key.

    The keys after a row, which a causal mask hides, get 0.

    Source: Press, Smith & Lewis, arXiv 2108.12409.
    """
    out = torch.zeros(heads, rows, keys, dtype=torch.float64)
    for head, slope in enumerate(alibi_slopes(heads).tolist()):
        for row in range(rows):
            place = row + keys - rows
            for key in range(place + 1):
                out[head, row, key] = -slope * (place - key)
    return out


def _full(scores: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The scores in float64, whatever is at unseen keys set to 0, and `seen` in their shape."""
    seen = seen.broadcast_to(scores.shape)
    return torch.where(seen, scores.double(), 0.0), seen


def _top(scores: Tensor, seen: Tensor) -> Tensor:
    """The largest score that each row sees, 0 where it sees none."""
    top = torch.where(seen, scores, -math.inf).amax(-1, keepdim=True)
    return torch.where(seen.any(-1, keepdim=True), top, 0.0)


def _group(q: Tensor, k: Tensor) -> int:
    """How many heads share a key head."""
    assert q.shape[1] % k.shape[1] == 0, "heads must be a multiple of key heads"
    return q.shape[1] // k.shape[1]
