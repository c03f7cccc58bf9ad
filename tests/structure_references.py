"""Naive float64 references of mechanisms that change more than a map's rows, in plain loops, written apart from ssmax_eval."""

import math

import references
import torch
from torch import Tensor

LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def by_row(q, k, v, seen, rule) -> tuple[Tensor, Tensor]:
    """The output and the map whose row is rule(batch, head, row, keys that it sees), on those keys."""
    batch, heads, rows, _ = q.shape
    group, keys = heads // k.shape[1], k.shape[2]
    seen = seen.broadcast_to(batch, heads, rows, keys)
    weights = torch.stack([
        torch.stack([torch.stack([spread(rule, b, h, i, seen[b, h, i]) for i in range(rows)]) for h in range(heads)])
        for b in range(batch)
    ])  # fmt: skip
    out = torch.stack([weights[:, h] @ v[:, h // group] for h in range(heads)], 2)
    return out, weights


def spread(rule, b, h, i, seen) -> Tensor:
    keys = seen.nonzero()[:, 0]
    row = torch.zeros(len(seen), dtype=torch.float64)
    return row.index_put((keys,), rule(b, h, i, keys)) if len(keys) else row


def lssa_rule(q, k, bias, power=None):
    group, channels = q.shape[1] // k.shape[1], q.shape[-1]

    def rule(b, h, i, keys):
        n, one, others = len(keys), q[b, h, i], k[b, h // group, keys]
        cosine = (others @ one) / (one.norm() * others.norm(dim=-1))
        scores = math.log(channels) * math.log(n) * cosine + (0 if bias is None else bias[h, i, keys])
        shares = (1 + scores.exp()).log()
        shares = shares / shares.sum()
        if power is None:
            return shares
        sharp = (n * shares - (1 if n > 3 else 0)).relu() ** power
        return sharp / sharp.sum()

    return rule


def lssa(mechanism, q, k, v, scaling, seen, bias):
    """Source: Gao et al., arXiv 2501.13428, as far as we know it."""
    return by_row(q, k, v, seen, lssa_rule(q, k, bias))


def lssar(mechanism, q, k, v, scaling, seen, bias):
    return by_row(q, k, v, seen, lssa_rule(q, k, bias, mechanism.p))


def differential(mechanism, q, k, v, scaling, seen, bias):
    vectors = [getattr(mechanism, name).double() for name in LAMBDAS]
    return references.differential(q, k, v, scaling, seen, *vectors, depth=mechanism.layer.index, bias=bias)


def dint(mechanism, q, k, v, scaling, seen, bias):
    """A1 - lambda A2 + lambda G, G the mean of A1's rows so far that see anything. Source: Cang et al., arXiv 2501.17486."""
    each = references.attention(q, k, v, scaling, references.softmax_map, seen, bias)[1]
    batch, heads, rows, keys = each.shape
    pairs, group, start = heads // 2, heads // k.shape[1], 0.8 - 0.6 * math.exp(-0.3 * mechanism.layer.index)
    q1, k1, q2, k2 = (getattr(mechanism, name).double() for name in LAMBDAS)
    strength = (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + start
    one, two = each[:, :pairs], each[:, pairs:]
    maps = torch.zeros(batch, pairs, rows, keys, dtype=torch.float64)
    for b in range(batch):
        for i in range(rows):
            so_far = [r for r in range(i + 1) if seen.broadcast_to(each.shape)[b, 0, r].any()]
            if so_far:
                mean = torch.stack([one[b, :, r] for r in so_far]).mean(0)
                maps[b, :, i] = one[b, :, i] - strength * two[b, :, i] + strength * mean
    out = []
    for pair in range(pairs):
        joined = torch.cat([v[:, pair // group], v[:, (pair + pairs) // group]], -1)
        mixed = maps[:, pair] @ joined
        out.append((1 - start) * mixed / (mixed.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    return torch.stack(out, 2).reshape(batch, rows, heads, -1), maps


def mswa(mechanism, q, k, v, scaling, seen, bias):
    """Four heads and four layers. Source: Xu et al., arXiv 2501.01039."""
    heads, rows, keys = q.shape[1], q.shape[2], k.shape[2]
    assert heads == mechanism.layer.layers == 4
    within = torch.zeros(heads, rows, keys, dtype=torch.bool)
    for head in range(4):
        size = mechanism.window * 2.0 ** (head - 2) * 2.0 ** (mechanism.layer.index - 2)
        for i in range(rows):
            for j in range(keys):
                within[head, i, j] = i - j < max(1, round(size))
    return references.attention(q, k, v, scaling, references.softmax_map, seen & within, bias)


def cca(mechanism, q, k, v, scaling, seen, bias):
    """Keys and values pooled first, then one softmax over pooled and near ones. Source: Chen et al., arXiv 2412.12465."""
    g, s = mechanism.g, mechanism.s
    batch, heads, rows, keys = *q.shape[:3], k.shape[2]
    group = heads // k.shape[1]
    seen = seen.broadcast_to(batch, heads, rows, keys)
    outs, maps = [], []
    for b in range(batch):
        tokens = [j for j in range(keys) if seen[b, 0, j, j]]
        for h in range(heads):
            pools = []
            for c in range(len(tokens) // g):
                members = tokens[c * g : (c + 1) * g]
                share = (scaling * k[b, h // group, members] @ q[b, h, members[-1]]).softmax(-1)
                pools.append((members, share, share @ k[b, h // group, members], share @ v[b, h // group, members]))
            for i in range(rows):
                row = torch.zeros(keys, dtype=torch.float64)
                if i not in tokens:
                    outs.append(torch.zeros_like(v[b, 0, 0]))
                    maps.append(row)
                    continue
                m = tokens.index(i) + 1
                near = m if m <= s else s + (m - s) % g
                cores, local = pools[: (m - near) // g], tokens[m - near : m]
                far = [scaling * q[b, h, i] @ core for _, _, core, _ in cores]
                if bias is not None:
                    far = [
                        z + share @ bias[h, i, members] for z, (members, share, _, _) in zip(far, cores, strict=True)
                    ]
                here = scaling * k[b, h // group, local] @ q[b, h, i] + (0 if bias is None else bias[h, i, local])
                both = torch.cat([torch.stack(far), here] if far else [here]).softmax(-1)
                out = both[len(far) :] @ v[b, h // group, local]
                row = row.index_put((torch.tensor(local),), both[len(far) :])
                for weight, (members, share, _, value) in zip(both, cores, strict=False):
                    out = out + weight * value
                    row = row.index_put((torch.tensor(members),), weight * share)
                outs.append(out)
                maps.append(row)
    out = torch.stack(outs).view(batch, heads, rows, -1).transpose(1, 2)
    return out, torch.stack(maps).view(batch, heads, rows, keys)


def gated(mechanism, q, k, v, scaling, seen, bias):
    """Source: Qiu et al., arXiv 2505.06708; the layer's input is at mechanism.shown."""
    out, weights = references.attention(q, k, v, scaling, references.softmax_map, seen, bias)
    gate = mechanism.shown.double() @ mechanism.gate.double()
    return out / (1 + (-gate).exp()).view_as(out), weights


def hgrn2(mechanism, q, k, v, seen):
    """The recurrence, one row after the other. Source: Qin et al., arXiv 2404.07904."""
    batch, heads, rows, channels = q.shape
    group, layer = heads // k.shape[1], mechanism.layer
    shares = mechanism.bounds.double().softmax(0)
    lower = sum(shares[1 : layer.index + 1], torch.zeros(k.shape[1] * channels, dtype=torch.float64))
    lower = lower.view(k.shape[1], channels)
    out = []
    for b in range(batch):
        states = [torch.zeros(channels, v.shape[-1], dtype=torch.float64) for _ in range(k.shape[1])]
        for i in range(rows):
            there, row = bool(seen[b, 0, i, i]), []
            for h in range(k.shape[1]):
                gate = lower[h] + (1 - lower[h]) * k[b, h, i].sigmoid()
                if there:
                    states[h] = gate[:, None] * states[h] + (1 - gate)[:, None] * v[b, h, i]
            for h in range(heads):
                row.append((q[b, h, i] * q[b, h, i].sigmoid()) @ states[h // group])
            row = torch.stack(row)
            out.append(row / (row.square().mean() + 1e-6).sqrt() if there else torch.zeros_like(row))
    return torch.stack(out).view(batch, rows, heads, -1)


# how each is spelled, and its float64 reference
TABLE = {
    "lssa": ("lssa", lssa),
    "lssar": ("lssar:p=3", lssar),
    "dint": ("dint", dint),
    "shared-differential": ("shared-differential:rank=2", differential),
    "mswa": ("mswa:window=16", mswa),
    "cca": ("cca:g=4,s=8", cca),
    "gated": ("gated", gated),
}
