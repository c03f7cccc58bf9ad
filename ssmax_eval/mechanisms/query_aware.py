"""A scale of the query that hangs on n and on the query itself."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .mechanism import Layer, Mechanism, drawn
from .registry import register
from .scales import scaled
from .seen import Seen

TOLD_AT = 1024  # n for which a record tells the scale
HIDDEN_CHANNELS = 64  # of both networks, as in the code that they are from


@register
class ScaleNQ(Mechanism):
    """q becomes q f(ln n) (1 + tanh g(q)), f and g networks with 64 hidden channels and GELU; softmax at first.

    f has an output for each head, or with channels=1 for each head and channel; g, which all heads of a layer share, has one, or
    one for each channel.
    """

    name = "scale-nq"
    reference = "QASSMax of TabICLv2, arXiv 2602.11139 (github.com/soda-inria/tabicl)"
    choices = (
        "f is 1 at first (last layer 0, its bias 1), which is softmax; there it is drawn around 0. Hidden layers are N(0, 1 / inputs), "
        "there uniform. n is each row's, there one for all rows"
    )
    undecayed = ("n_out_bias",)

    def __init__(self, layer: Layer, *, channels: int = 0) -> None:
        super().__init__(layer)
        if channels not in (0, 1):
            raise UserError(
                f"attention option channels={channels} of {self.name}: allowed are 0 (a scale for each head) and 1 (for each channel)"
            )
        outputs = layer.head_dim if channels else 1
        first = drawn(layer, 1.0, HIDDEN_CHANNELS, layer.head_dim + 2)
        self.n_in, self.n_in_bias = nn.Parameter(first[:, :1].clone()), nn.Parameter(first[:, 1].clone())
        self.n_out = nn.Parameter(torch.zeros(layer.heads, outputs, HIDDEN_CHANNELS))
        self.n_out_bias = nn.Parameter(torch.ones(layer.heads, 1, outputs))
        self.q_in = nn.Parameter(first[:, 2:] / layer.head_dim**0.5)
        self.q_in_bias = nn.Parameter(torch.zeros(HIDDEN_CHANNELS))
        self.q_out = nn.Parameter(torch.zeros(outputs, HIDDEN_CHANNELS))
        self.q_out_bias = nn.Parameter(torch.zeros(outputs))

    def of_n(self, n: Tensor) -> Tensor:
        """Return f, float32 (batch, heads, rows, channels or 1), of n (batch, heads or 1, rows)."""
        hidden = F.gelu(n.log()[..., None] @ self.n_in.float().T + self.n_in_bias.float())
        return hidden @ self.n_out.float().transpose(-1, -2) + self.n_out_bias.float()

    def of_q(self, q: Tensor) -> Tensor:
        """Return 1 + tanh g, float32 (batch, heads, rows, channels or 1), of queries (batch, heads, rows, head_dim)."""
        hidden = F.gelu(F.linear(q.float(), self.q_in.float(), self.q_in_bias.float()))
        return 1 + F.linear(hidden, self.q_out.float(), self.q_out_bias.float()).tanh()

    def query(self, q: Tensor, seen: Seen) -> Tensor:
        return scaled(q, self.of_n(seen.n) * self.of_q(q))

    def learned(self) -> dict[str, list[float]]:
        """Return f at n = 1,024 for each head, the mean of its channels."""
        with torch.no_grad():
            at = torch.full((1, 1, 1), float(TOLD_AT), device=self.n_in.device)
            return {f"f({TOLD_AT})": [round(value, 4) for value in self.of_n(at).mean(-1).flatten().tolist()]}
