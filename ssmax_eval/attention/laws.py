"""Attention laws: the query scale C(n) of softmax(C(n) q.k / sqrt d), the one place that knows formulas.

n is the number of keys a query row may see. L is the length the model was trained at. A law is a small
module whose forward maps n, float32 of shape (batch, rows), to scales that broadcast against
(batch, heads, rows); what it learns are its own parameters, one value per head.

Adding a law is one class and one line:

    @register
    class Sharp(Law):
        "C = factor"
        name = "sharp"

        def __init__(self, heads, train_length, *, factor: float = 2.0):
            super().__init__(heads, train_length)
            self.factor = factor

        def forward(self, n):
            return torch.full_like(n, self.factor)[:, None]

Its keyword-only arguments become the options of `--attention sharp:factor=3`.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UserError


class Law(nn.Module):
    """Scale the query of one attention layer by C(n).

    heads: query heads of the layer. train_length: L in tokens. Keyword-only arguments of a subclass are its options;
    an option called `first` receives the law of the first layer, for parameters that all layers share. A law that is
    not active leaves the query as it is: training can swap it in late.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    active: bool = True
    _tied_weights_keys: dict[str, str] | None = None  # read by transformers when it saves

    def __init__(self, heads: int, train_length: int) -> None:
        super().__init__()
        self.heads = heads
        self.train_length = train_length

    def forward(self, n: Tensor) -> Tensor:
        """Map n, float32 (batch, rows) >= 1, to C(n), float32 (batch, heads or 1, rows)."""
        raise NotImplementedError

    def take_over(self, other: "Law") -> None:
        """Go on from what a law of this kind learned at another training length."""
        self.load_state_dict(other.state_dict())


LARGEST_OPTION = 1e9
LARGEST_LENGTH = 2**27  # tokens; also the longest table of learned-p

LAWS: dict[str, type[Law]] = {}
SomeLaw = TypeVar("SomeLaw", bound=type[Law])


def register(law: SomeLaw) -> SomeLaw:
    """Make a law selectable by its name; the first line of its docstring is what `ssmax-eval laws` prints."""
    law.summary = (law.__doc__ or "").strip().splitlines()[0]
    LAWS[law.name] = law
    return law


def mean_log_n(train_length: int) -> float:
    """Return the mean of ln n over the rows n = 1..L, ln(L!) / L, in nats."""
    return math.lgamma(train_length + 1) / train_length


def per_head(value: float, heads: int) -> nn.Parameter:
    return nn.Parameter(torch.full((heads,), float(value), dtype=torch.float32))


@register
class Softmax(Law):
    """C = 1: attention as trained everywhere."""

    name = "softmax"

    def forward(self, n: Tensor) -> Tensor:
        return torch.ones_like(n)[:, None]


@register
class SSMax(Law):
    """C = s ln n, s learned per head (arXiv 2501.19399, configuration b).

    s starts at 1 / mean(ln n) over the training length unless given: the same mean scale as softmax.
    """

    name = "ssmax"

    def __init__(self, heads: int, train_length: int, *, s: float | None = None) -> None:
        super().__init__(heads, train_length)
        self.s = per_head(1 / mean_log_n(train_length) if s is None else s, heads)

    def forward(self, n: Tensor) -> Tensor:
        return self.s.float()[:, None] * n.log()[:, None]


@register
class SSMaxFixed(Law):
    """C = s ln n with s = 1, or another number that is not learned (arXiv 2501.19399, configuration c)."""

    name = "ssmax-fixed"

    def __init__(self, heads: int, train_length: int, *, s: float = 1.0) -> None:
        super().__init__(heads, train_length)
        self.s = s

    def forward(self, n: Tensor) -> Tensor:
        return self.s * n.log()[:, None]


@register
class SSMaxBias(SSMax):
    """C = s ln n + b, s and b learned per head (arXiv 2501.19399, configuration d)."""

    name = "ssmax-bias"

    def __init__(self, heads: int, train_length: int, *, s: float | None = None, b: float = 0.0) -> None:
        super().__init__(heads, train_length, s=s)
        self.b = per_head(b, heads)

    def forward(self, n: Tensor) -> Tensor:
        return super().forward(n) + self.b.float()[:, None]


@register
class ConstantN(SSMax):
    """C = s ln L for every row: the control that is sharper but does not adapt to n."""

    name = "constant-n"

    def forward(self, n: Tensor) -> Tensor:
        return super().forward(torch.full_like(n, self.train_length))


@register
class LogN(Law):
    """C = max(1, ln n / ln L): log-n scaling clipped at the training length (Su's ReRoPE; Qwen's use_logn_attn)."""

    name = "log-n"

    def forward(self, n: Tensor) -> Tensor:
        return (n.log() / math.log(self.train_length)).clamp(min=1)[:, None]


@register
class Llama4(Law):
    """C = 1 + beta ln(1 + floor(n / floor_scale)): Llama 4's temperature (transformers llama4, there on NoPE layers)."""

    name = "llama4"

    def __init__(self, heads: int, train_length: int, *, beta: float = 0.1, floor_scale: float = 8192.0) -> None:
        super().__init__(heads, train_length)
        self.beta, self.floor_scale = beta, positive("floor_scale", floor_scale)

    def forward(self, n: Tensor) -> Tensor:
        return (1 + self.beta * (n / self.floor_scale).floor().log1p())[:, None]


@register
class Ministral3(Law):
    """C = 1 + beta ln(1 + floor(p / L)), p = n - 1 the row's position (transformers ministral3)."""

    name = "ministral3"

    def __init__(self, heads: int, train_length: int, *, beta: float = 0.1) -> None:
        super().__init__(heads, train_length)
        self.beta = beta

    def forward(self, n: Tensor) -> Tensor:
        return (1 + self.beta * ((n - 1) / self.train_length).floor().log1p())[:, None]


@register
class Yarn(Law):
    """C = (0.1 ln f + 1)^2 for every row, f the extension factor: YaRN's attention factor on the logits (2309.00071)."""

    name = "yarn-factor"

    def __init__(self, heads: int, train_length: int, *, factor: float = 4.0) -> None:
        super().__init__(heads, train_length)
        self.factor = positive("factor", factor)

    def forward(self, n: Tensor) -> Tensor:
        return torch.full_like(n, (0.1 * math.log(self.factor) + 1) ** 2)[:, None]


@register
class Grok(Law):
    """C = log2 p / log2 L beyond the training length, else 1, p = n - 1 the row's position (sglang's Grok kernels)."""

    name = "grok"

    def forward(self, n: Tensor) -> Tensor:
        p = n - 1
        beyond = p.clamp(min=1).log2() / math.log2(self.train_length)
        return torch.where(p > self.train_length, beyond, torch.ones_like(n))[:, None]


@register
class SqrtLogN(Law):
    """C = sqrt(2 ln n): the extreme-value scale, the expected maximum of n standard normals (2601.12145)."""

    name = "sqrt-log-n"

    def forward(self, n: Tensor) -> Tensor:
        return (2 * n.log()).sqrt()[:, None]


@register
class LearnedP(Law):
    """C = s p_n + b, with one learned table p over n shared by all layers and heads (arXiv 2501.19399, equation 3).

    p starts at 1, s at 1 and b at 0, which is softmax. Beyond the table, n > L, the paper says nothing; here p_n
    continues as a1 ln n + a2 fitted to the table by least squares, the form that the paper finds it to have.
    """

    name = "learned-p"

    def __init__(self, heads: int, train_length: int, *, first: "LearnedP | None" = None) -> None:
        super().__init__(heads, train_length)
        # the very same parameter in every layer: one table, trained and saved once
        table = nn.Parameter(torch.ones(train_length, dtype=torch.float32))
        self.p: nn.Parameter = table if first is None else first.p
        self.s, self.b = per_head(1, heads), per_head(0, heads)

    def forward(self, n: Tensor) -> Tensor:
        return self.s.float()[:, None] * self.p_of(n)[:, None] + self.b.float()[:, None]

    def p_of(self, n: Tensor) -> Tensor:
        """Return p_n, float32 of n's shape."""
        table = self.p.float().to(n.device)  # layers may be on other devices
        log_n = torch.arange(1, len(table) + 1, device=n.device, dtype=torch.float32).log()
        centred = log_n - log_n.mean()
        slope = (centred * table).sum() / centred.square().sum().clamp(min=1e-12)
        fitted = table.mean() + slope * (n.log() - log_n.mean())
        within = table[(n.long() - 1).clamp(max=len(table) - 1)]
        return torch.where(n <= len(table), within, fitted)

    def take_over(self, other: Law) -> None:
        """Also continue a shorter table along its own line. Raises UserError for a longer one: none of it is dropped."""
        assert isinstance(other, LearnedP)
        if len(other.p) > len(self.p):
            raise UserError(
                f"train_length {len(self.p)}: the model to start from has a learned-p table of {len(other.p)} tokens; "
                "go on at that length or a longer one, or with another law"
            )
        n = torch.arange(1, len(self.p) + 1, device=self.p.device, dtype=torch.float32)
        state = other.state_dict() | {"p": other.p_of(n[None])[0].detach()}
        self.load_state_dict(state)


def shared_parameters(laws: Mapping[str, Law]) -> dict[str, str]:
    """Return which parameters of a model's laws are one, {name in a later layer: name in the first}, and tell transformers.

    laws: by the name of their attention module. A checkpoint then holds such a parameter once, under its first name.
    """
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for module, law in laws.items():
        law._tied_weights_keys = {}
        for key, parameter in law.named_parameters():
            name = f"{module}.ssmax.{key}"
            if (origin := first.setdefault(id(parameter), name)) != name:
                ties[name], law._tied_weights_keys[key] = origin, key
    return ties


def positive(option: str, value: float) -> float:
    """Return value, refusing what is not clearly above 0."""
    if not value >= 1e-6:
        raise UserError(f"attention option {option}={value:g}: allowed are numbers from 1e-6")
    return value


def parse_law(text: str) -> tuple[type[Law], dict[str, float]]:
    """Split `NAME[:key=value,...]` into a law's class and its options; `train_length` is an option of every law."""
    name, _, rest = text.partition(":")
    if name not in LAWS:
        raise UserError(f"unknown attention law {name!r}; allowed: {', '.join(LAWS)}")
    law = LAWS[name]
    allowed = ["train_length", *law_options(law)]
    options: dict[str, float] = {}
    if len({part.partition("=")[0] for part in rest.split(",")}) < len(rest.split(",")):
        raise UserError(f"attention law {text!r}: an option is given twice; give it once")
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in allowed:
            raise UserError(f"unknown option {part!r} of attention law {name}; allowed: {', '.join(allowed)}=NUMBER")
        try:
            options[key] = float(value)
        except ValueError:
            options[key] = math.nan
        if not abs(options[key]) <= LARGEST_OPTION:
            raise UserError(f"attention option {key}={value!r} of {name}: allowed are numbers up to {LARGEST_OPTION:g}")
    length = float(options.get("train_length", 2))
    if not (2 <= length <= LARGEST_LENGTH and length.is_integer()):
        raise UserError(f"attention option train_length={length:g}: allowed are whole numbers, 2 to {LARGEST_LENGTH}")
    law(1, 2, **{key: value for key, value in options.items() if key != "train_length"})  # its own refusals, early
    return law, options


def format_law(law: type[Law], options: dict[str, Any]) -> str:
    """Return the canonical spelling `name:key=value,...`, keys sorted."""
    rest = ",".join(f"{key}={plain_number(options[key])}" for key in sorted(options))
    return f"{law.name}:{rest}" if rest else law.name


def plain_number(value: float) -> str:
    """Write a number so that reading it gives the same number, whole ones without a point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def law_options(law: type[Law]) -> list[str]:
    """Return the option names of a law: the keyword-only arguments of its constructor."""
    parameters = inspect.signature(law).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "first"]
