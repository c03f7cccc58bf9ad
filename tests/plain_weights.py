"""Float64 references of mechanisms that make one map, row by row in plain loops, written apart from ssmax_eval.

Each takes what a layer attended with, `mechanism` for its learned numbers and options alone, x the layer's input, and returns
output and map as references.attention does. A row's own key is the last that it sees.
"""

import math

import references
import torch


def rows_of(scores, seen):
    """Yield (batch, row, the keys it sees, ascending) of every row that sees any."""
    batch, _, rows, keys = scores.shape
    seen = seen.expand(batch, 1, rows, keys)
    for b in range(batch):
        for i in range(rows):
            if (visible := seen[b, 0, i].nonzero().flatten().tolist()) != []:
                yield b, i, visible


def n_of(seen):
    return seen.sum(-1, keepdim=True).clamp(min=1).double()


def sparsemax_map(scores, seen):
    """max(z - tau, 0): the support is the largest k whose k-th score is above (the sum of the k largest - 1) / k."""
    scores, out = scores.double(), torch.zeros_like(scores, dtype=torch.float64)
    for b, i, visible in rows_of(scores, seen):
        for h in range(scores.shape[1]):
            z = scores[b, h, i, visible]
            ordered = sorted(z.tolist(), reverse=True)
            size = max(k for k in range(1, len(z) + 1) if 1 + k * ordered[k - 1] > sum(ordered[:k]))
            tau = (z.sort(descending=True).values[:size].sum() - 1) / size
            out[b, h, i, visible] = (z - tau).clamp(min=0)
    return out


def stick_breaking_map(scores, seen):
    """A stick of length 1: each key, nearest first, takes sigmoid(z) of what is left; the row's own takes no part."""
    weights = scores.double().new_zeros(scores.shape)
    for b, i, visible in rows_of(scores, seen):
        left = torch.ones(scores.shape[1], dtype=torch.float64)
        for j in reversed(visible[:-1]):
            taken = 1 / (1 + (-scores[b, :, i, j].double()).exp())
            weights[b, :, i, j] = left * taken
            left = left * (1 - taken)
    return weights


def sparsemax(mechanism, q, k, v, scaling, seen, bias, x):
    factor = mechanism.factor.double()[:, None, None]
    return references.attention(q, k, v, scaling, lambda z, seen: sparsemax_map(factor * z, seen), seen, bias)


def asentmax(mechanism, q, k, v, scaling, seen, bias, x):
    beta, gamma = (p.double()[:, None, None] for p in (mechanism.beta, mechanism.gamma))
    scale = mechanism.delta + beta * (gamma * (n_of(seen) + 1).log().log()).exp()
    return references.attention(q, k, v, scaling, references.entmax15_map, seen, bias, query_scale=scale)


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def scale_nq(mechanism, q, k, v, scaling, seen, bias, x):
    names = ("n_in", "n_in_bias", "n_out", "n_out_bias", "q_in", "q_in_bias", "q_out", "q_out_bias")
    a, a0, c, c0, d, d0, e, e0 = (getattr(mechanism, name).double() for name in names)
    batch, heads, rows, _ = q.shape
    n = n_of(seen).expand(batch, 1, rows, 1)
    out = torch.zeros_like(q, dtype=torch.float64)
    for b in range(batch):
        for i in range(rows):
            hidden = gelu(a[:, 0] * math.log(n[b, 0, i]) + a0)
            for h in range(heads):
                row = q[b, h, i].double()
                g = e @ gelu(d @ row + d0) + e0
                out[b, h, i] = row * (c[h] @ hidden + c0[h, 0]) * (1 + g.tanh())
    return references.attention(out, k, v, scaling, references.softmax_map, seen, bias)


def sigmoid(mechanism, q, k, v, scaling, seen, bias, x):
    b = -n_of(seen).log() if mechanism.b is None else mechanism.b
    return references.attention(
        q, k, v, scaling, lambda z, seen: torch.where(seen, 1 / (1 + (-z - b).exp()), 0.0), seen, bias
    )


def stick_breaking(mechanism, q, k, v, scaling, seen, bias, x):
    return references.attention(q, k, v, scaling, stick_breaking_map, seen, bias)


def added_to(change):
    """Return a reference of softmax over a row's changed scores and the bias.

    change(mechanism, z, x, own, keys): z (heads, keys) of the keys that a row sees, x (tokens, width), own the row's own key.
    """

    def reference(mechanism, q, k, v, scaling, seen, bias, x):
        def changed(scores, seen):
            out = scores.clone()
            for b, i, visible in rows_of(scores, seen):
                z = scores[b, :, i, visible]
                out[b, :, i, visible] = change(
                    mechanism, z, x if x is None else x[b], visible[-1], torch.tensor(visible)
                )
            return references.softmax_map(out if bias is None else out + bias, seen)

        return references.attention(q, k, v, scaling, changed, seen)

    return reference


def far(mechanism, z, x, own, keys):
    m = 2 * (1 + (own - keys).double() / mechanism.tau).log()
    return (1 + m).sqrt() * z - m


def gate(mechanism, z, x, own, keys):
    closed = (1 + (-x[: own + 1].double() @ mechanism.w.double().T - mechanism.b.double()).exp()).log()
    later = (torch.arange(own + 1) > keys[:, None]).double()  # which gates lie between a key and the row
    return z - (later @ closed).T


def fixed_gate(mechanism, z, x, own, keys):
    return z - (own - keys) * (1 + (-mechanism.b.double()).exp()).log()[:, None]


# how each is spelled, and its reference
TABLE = {
    "sparsemax": ("sparsemax:factor=0.8", sparsemax),
    "asentmax": ("asentmax", asentmax),
    "scale-nq": ("scale-nq", scale_nq),
    "scale-nq of channels": ("scale-nq:channels=1", scale_nq),
    "sigmoid": ("sigmoid", sigmoid),
    "sigmoid of b": ("sigmoid:b=-1", sigmoid),
    "stick-breaking": ("stick-breaking", stick_breaking),
    "scale-invariant": ("scale-invariant", added_to(far)),
    "fox": ("fox", added_to(gate)),
    "fox-bias": ("fox-bias", added_to(fixed_gate)),
}
