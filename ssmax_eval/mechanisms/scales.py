"""Query scales C(n): mechanisms softmax(C(n) q.k / sqrt d), the one place that knows their formulas.

n is the number of keys a query row may see. L is the length the model was trained at. A query scale maps n to scales that
multiply the query; what it learns are its own parameters, one value per head. Adding one is one class:

    @register
    class Sharp(QueryScale):
        "C = factor"
        name = "sharp"

        def __init__(self, layer, *, factor: float = 2.0):
            super().__init__(layer)
            self.factor = factor

        def forward(self, n):
            return torch.full_like(n, self.factor)
"""

import math
from statistics import fmean

import torch
from torch import Tensor, nn

from ..errors import UserError
from .mechanism import Layer, Mechanism, per_head, positive
from .registry import register
from .seen import Seen

AT_ONCE = 2**18  # numbers of a query that are scaled together


class QueryScale(Mechanism):
    """Scale the query of one attention layer by C(n)."""

    def forward(self, n: Tensor) -> Tensor:
        """Map n, float32 (batch, heads or 1, rows) >= 1, to C(n), float32 (batch, heads or 1, rows)."""
        raise NotImplementedError

    def query(self, q: Tensor, seen: Seen) -> Tensor:
        """Return q times C(n), rounded once."""
        return scaled(q, self(seen.n)[..., None])


def scaled(q: Tensor, scale: Tensor) -> Tensor:
    """Return queries (batch, heads, rows, head_dim) times a float32 scale (batch or 1, heads or 1, rows, head_dim or 1), rounded once."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (q * scale).to(q.dtype)
    # in parts: a float32 copy of all queries costs 4% of a forward on a processor, most of it for new pages of memory
    product, rows = torch.empty_like(q), max(1, AT_ONCE * q.shape[2] // q.numel())
    for start in range(0, q.shape[2], rows):
        part = slice(start, start + rows)
        product[:, :, part] = q[:, :, part] * scale[:, :, part]
    return product


def mean_log_n(train_length: int) -> float:
    """Return the mean of ln n over the rows n = 1..L, ln(L!) / L, in nats."""
    return math.lgamma(train_length + 1) / train_length


def expected_log_n(layer: Layer) -> float:
    """Return the mean of ln n over the rows that a layer is trained on: of ln L over an encoder's lengths, else mean_log_n."""
    return fmean(map(math.log, layer.lengths)) if layer.lengths else mean_log_n(layer.train_length)


@register
class Softmax(QueryScale):
    """C = 1: attention as trained everywhere."""

    name = "softmax"
    windowed = True

    def forward(self, n: Tensor) -> Tensor:
        return torch.ones_like(n)


@register
class SSMax(QueryScale):
    """C = s ln n, s learned per head.

    s starts at 1 / mean(ln n) over the rows of the training unless given: the same mean scale as softmax.
    """

    name = "ssmax"
    reference = "arXiv 2501.19399, configuration b"
    choices = "s = 1 / mean(ln n) at first, for which the paper says nothing"

    def __init__(self, layer: Layer, *, s: float | None = None) -> None:
        super().__init__(layer)
        self.s = per_head(1 / expected_log_n(layer) if s is None else s, layer.heads)

    def forward(self, n: Tensor) -> Tensor:
        return self.s.float()[:, None] * n.log()


@register
class SSMaxFixed(QueryScale):
    """C = s ln n with s = 1, or another number that is not learned."""

    name = "ssmax-fixed"
    reference = "arXiv 2501.19399, configuration c"

    def __init__(self, layer: Layer, *, s: float = 1.0) -> None:
        super().__init__(layer)
        self.s = s

    def forward(self, n: Tensor) -> Tensor:
        return self.s * n.log()


@register
class SSMaxBias(SSMax):
    """C = s ln n + b, s and b learned per head."""

    name = "ssmax-bias"
    reference = "arXiv 2501.19399, configuration d"

    def __init__(self, layer: Layer, *, s: float | None = None, b: float = 0.0) -> None:
        super().__init__(layer, s=s)
        self.b = per_head(b, layer.heads)

    def forward(self, n: Tensor) -> Tensor:
        return super().forward(n) + self.b.float()[:, None]


@register
class SSSMax(SSMax):
    """C = s ln n + .1 + max(b, 0), s and b learned per head, s .43 and b .1 at first: never below .1."""

    name = "sssmax"
    reference = "stable scalable softmax of NexteraBERT (github.com/Rikka-Botan/NexteraBERT)"
    choices = "s and b for each head; there they are one number for a layer"

    def __init__(self, layer: Layer, *, s: float = 0.43, b: float = 0.1) -> None:
        super().__init__(layer, s=s)
        self.b = per_head(b, layer.heads)

    def forward(self, n: Tensor) -> Tensor:
        return super().forward(n) + 0.1 + self.b.float().clamp(min=0)[:, None]


@register
class ConstantN(SSMax):
    """C = s ln L for every row: the control that is sharper but does not adapt to n."""

    name = "constant-n"
    reference = ""
    choices = "a control of ours; s as SSMax's"

    def forward(self, n: Tensor) -> Tensor:
        return super().forward(torch.full_like(n, self.layer.train_length))


@register
class LogN(QueryScale):
    """C = max(1, ln n / ln L): log-n scaling clipped at the training length."""

    name = "log-n"
    reference = "Su, ReRoPE; Qwen's use_logn_attn"

    def forward(self, n: Tensor) -> Tensor:
        return (n.log() / math.log(self.layer.train_length)).clamp(min=1)


@register
class Llama4(QueryScale):
    """C = 1 + beta ln(1 + floor(n / floor_scale)): Llama 4's temperature."""

    name = "llama4"
    reference = "transformers llama4, there on NoPE layers"

    def __init__(self, layer: Layer, *, beta: float = 0.1, floor_scale: float = 8192.0) -> None:
        super().__init__(layer)
        self.beta, self.floor_scale = beta, positive("floor_scale", floor_scale)

    def forward(self, n: Tensor) -> Tensor:
        return 1 + self.beta * (n / self.floor_scale).floor().log1p()


@register
class Ministral3(QueryScale):
    """C = 1 + beta ln(1 + floor(p / L)), p = n - 1 the row's position."""

    name = "ministral3"
    reference = "transformers ministral3"

    def __init__(self, layer: Layer, *, beta: float = 0.1) -> None:
        super().__init__(layer)
        self.beta = beta

    def forward(self, n: Tensor) -> Tensor:
        return 1 + self.beta * ((n - 1) / self.layer.train_length).floor().log1p()


@register
class Yarn(QueryScale):
    """C = (0.1 ln f + 1)^2 for every row, f the extension factor: YaRN's attention factor on the logits."""

    name = "yarn-factor"
    reference = "YaRN, arXiv 2309.00071"

    def __init__(self, layer: Layer, *, factor: float = 4.0) -> None:
        super().__init__(layer)
        self.factor = positive("factor", factor)

    def forward(self, n: Tensor) -> Tensor:
        return torch.full_like(n, (0.1 * math.log(self.factor) + 1) ** 2)


@register
class Grok(QueryScale):
    """C = log2 p / log2 L beyond the training length, else 1, p = n - 1 the row's position."""

    name = "grok"
    reference = "sglang's Grok kernels"

    def forward(self, n: Tensor) -> Tensor:
        p = n - 1
        beyond = p.clamp(min=1).log2() / math.log2(self.layer.train_length)
        return torch.where(p > self.layer.train_length, beyond, torch.ones_like(n))


@register
class SqrtLogN(QueryScale):
    """C = sqrt(2 ln n): the extreme-value scale, the expected maximum of n standard normals.

    arXiv 2601.12145 subtracts sqrt(2 ln n / d) as a threshold; scales that grow as (ln n)^(1/2) are discussed in 2605.12697.
    """

    name = "sqrt-log-n"
    choices = "a query scale of ours"

    def forward(self, n: Tensor) -> Tensor:
        return (2 * n.log()).sqrt()


@register
class LearnedP(QueryScale):
    """C = s p_n + b, with one learned table p over n shared by all layers and heads.

    p starts at 1, s at 1 and b at 0, which is softmax. Beyond the table, n > L, the paper says nothing; here p_n
    continues as a1 ln n + a2 fitted to the table by least squares, the form that the paper finds it to have.
    """

    name = "learned-p"
    reference = "arXiv 2501.19399, equation 3"
    choices = "beyond the table: a1 ln n + a2 fitted to it; p 1, s 1, b 0 at first"

    def __init__(self, layer: Layer, *, first: "LearnedP | None" = None) -> None:
        super().__init__(layer)
        # the very same parameter in every layer: one table, trained and saved once
        table = nn.Parameter(torch.ones(layer.train_length, dtype=torch.float32))
        self.p: nn.Parameter = table if first is None else first.p
        self.s, self.b = per_head(1, layer.heads), per_head(0, layer.heads)

    def forward(self, n: Tensor) -> Tensor:
        return self.s.float()[:, None] * self.p_of(n) + self.b.float()[:, None]

    def p_of(self, n: Tensor) -> Tensor:
        """Return p_n, float32 of n's shape."""
        table = self.p.float().to(n.device)  # layers may be on other devices
        log_n = torch.arange(1, len(table) + 1, device=n.device, dtype=torch.float32).log()
        centred = log_n - log_n.mean()
        slope = (centred * table).sum() / centred.square().sum().clamp(min=1e-12)
        fitted = table.mean() + slope * (n.log() - log_n.mean())
        within = table[(n.long() - 1).clamp(max=len(table) - 1)]
        return torch.where(n <= len(table), within, fitted)

    def take_over(self, other: Mechanism) -> None:
        """Also continue a shorter table along its own line. Raises UserError for a longer one: none of it is dropped."""
        assert isinstance(other, LearnedP)
        if len(other.p) > len(self.p):
            raise UserError(
                f"train_length {len(self.p)}: the model to start from has a learned-p table of {len(other.p)} tokens; "
                "go on at that length or a longer one, or with another mechanism"
            )
        n = torch.arange(1, len(self.p) + 1, device=self.p.device, dtype=torch.float32)
        state = other.state_dict() | {"p": other.p_of(n[None])[0].detach()}
        self.load_state_dict(state)
