"""The one interface of what stands where softmax(q.k / sqrt d) stood, on one layer.

A mechanism is a small module whose parts compose. Each part has a default, and the defaults together are softmax attention:

    project         what becomes of the layer's own projections to q and k, before norm and RoPE
    query, key      what becomes of q and k, which RoPE has turned
    scores          rows x keys of float32, before the mask: the scaled product
    weights         what becomes of the scores: softmax
    join, finish    what becomes of v beforehand, and of the weighted values afterwards
    begin           what the first block of rows is told of all of them
    attend          all of the above; for what is no map over the keys

One that changes queries and keys only runs on transformers' own sdpa. Any other runs here, in blocks of rows, so that a map of
all rows and keys never exists. Adding one is one file:

    from ssmax_eval import Mechanism, register

    @register
    class Sharp(Mechanism):
        "weights = softmax(factor z)"
        name = "sharp"

        def __init__(self, layer, *, factor: float = 2.0):
            super().__init__(layer)
            self.factor = factor

        def weights(self, scores, seen):
            return (self.factor * scores).softmax(-1)

Its keyword-only arguments are the options of `--attention sharp:factor=3 --import sharp.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError

if TYPE_CHECKING:
    from ..position.bias import Bias
    from .seen import Seen

HIDDEN = -1e9  # e to that is 0, and its square is still finite
BLOCK_ENTRIES = 2**24  # numbers of one block of a map; 64 MiB in float32
CACHED_ENTRIES = 2**20  # of one that a processor's caches hold: it is read there 4 to 10 times as fast


@dataclass(frozen=True)
class Layer:
    """What a mechanism is told of the layer that it stands on.

    heads, key_heads: of queries, and of keys and values. head_dim: channels of a query. width: channels of the layer's input.
    index: the layer's place in the decoder, from 0. layers: how many the decoder has. train_length: L in tokens. seed: of
    first values that are drawn. lengths: in an encoder, whose rows all see a whole sequence, the tokens of those that it is
    trained on; () in a decoder, whose rows see 1 to L.
    """

    heads: int
    train_length: int
    key_heads: int = 1
    head_dim: int = 64
    width: int = 64
    index: int = 0
    layers: int = 1
    seed: int = 0
    lengths: tuple[int, ...] = ()


class Mechanism(nn.Module):
    """Softmax attention, for mechanisms to change parts of.

    layer: what it stands on. Keyword-only arguments of a subclass are its options; one called `first` receives the mechanism
    of the first layer, for parameters that all layers share. A mechanism that is not active leaves softmax as it is: training
    can swap it in late.

    What a class says of itself: name, its spelling; summary, the first line of its docstring; reference, where it is from;
    choices, what that leaves open and is ours; swap, whether a model trained with softmax can take it, or has to be trained
    with it from scratch; cache, how its state follows a KV cache ("crop": it has none, keys are enough; "whole": it reads
    whole sequences only); signed, sparse, normalised, whether weights can be below 0, are exactly 0 for some keys, sum to 1;
    needs_input, whether `seen.input` is wanted; carries, whether a block of rows needs what earlier ones left in `seen.carry`,
    and so all keys in each; windowed, whether it also stands on layers with a window; has_map, whether it weighs keys at all,
    so that there are masses to record; position, the only one that it can be trained with, None for any; causal_only, whether its
    formula needs rows that see nothing after them, so that an encoder cannot have it (one that carries cannot either). undecayed,
    parameters of several axes that are no matrices (biases, tables), which weight decay leaves alone in training.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str] = ""
    choices: ClassVar[str] = ""
    swap: ClassVar[bool] = True
    cache: ClassVar[Literal["crop", "whole"]] = "crop"
    signed: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    normalised: ClassVar[bool] = True
    needs_input: ClassVar[bool] = False
    carries: ClassVar[bool] = False
    windowed: ClassVar[bool] = False
    has_map: ClassVar[bool] = True
    undecayed: ClassVar[tuple[str, ...]] = ()
    position: ClassVar[str | None] = None
    causal_only: ClassVar[bool] = False

    active: bool = True
    _tied_weights_keys: dict[str, str] | None = None  # read by transformers when it saves

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.position_bias: Bias | None = None  # of the position, added to the scores (position/bias.py)

    @property
    def reach(self) -> int | None:
        """How many tokens back a stack of such layers can carry anything, None for any number."""
        return None

    def project(self, projected: Tensor, x: Tensor, to: Literal["query", "key"]) -> Tensor:
        """Return the projection to use of the layer's own to queries or keys (batch, rows, their heads, head_dim).

        x: the layer's input (batch, rows, width). What is returned is what norm and RoPE turn and a cache holds.
        """
        return projected

    def query(self, q: Tensor, seen: "Seen") -> Tensor:
        """Return the queries to use of q (batch, heads, rows, head_dim), in q's dtype if sdpa is to run them."""
        return q

    def key(self, k: Tensor, seen: "Seen") -> Tensor:
        """Return the keys to use of k (batch, key heads, keys, head_dim), in k's dtype if sdpa is to run them."""
        return k

    def begin(self, q: Tensor, k: Tensor, v: Tensor, seen: "Seen") -> dict[str, Tensor]:
        """Return what `seen.carry` tells the first block of rows, of all rows and keys."""
        return {}

    def scores(self, q: Tensor, k: Tensor, seen: "Seen") -> Tensor:
        """Return the scores of some rows, float32 (batch, heads, rows, keys), of q and k as query and key left them."""
        batch, heads, rows, channels = q.shape
        keys = k.shape[2]
        # products of the layer's own dtype, summed in float32 as sdpa's kernels do
        grouped = q.reshape(batch, k.shape[1], -1, channels).float()
        return (grouped @ k.float().transpose(-1, -2)).view(batch, heads, rows, keys) * seen.scaling

    def weights(self, scores: Tensor, seen: "Seen") -> Tensor:
        """Return the weights of some rows, float32 (batch, maps, rows, keys), of scores (batch, heads, rows, keys).

        scores are HIDDEN where a row may not look: far below all others, but finite, so that whatever is learned in here keeps
        finite gradients. The weights there are made 0 afterwards.
        """
        return scores.softmax(-1)

    def join(self, v: Tensor) -> Tensor:
        """Return the values that the maps are multiplied with, of v (batch, key heads, keys, channels).

        They are (batch, a divisor of maps, keys, any).
        """
        return v

    def finish(self, mixed: Tensor) -> Tensor:
        """Return a layer's output (batch, heads, rows, channels) of its weighted values (batch, maps, rows, any)."""
        return mixed

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, seen: "Seen", keep: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the output (batch, heads, rows, channels), and weights and weighted values of the rows `keep` (batch, chosen).

        The latter two are None for what has no map. q, k and v are float32, as query and key left them. A block of rows is
        computed at a time, and computed again in the backward pass, so that no map is kept.
        """
        values = self.join(v)
        rows, keys = q.shape[2], k.shape[2]
        again = torch.is_grad_enabled()
        # with gradients each block is computed twice, so there are as few as memory allows
        cached = q.device.type == "cpu" and not again
        entries = min(BLOCK_ENTRIES, CACHED_ENTRIES) if cached else BLOCK_ENTRIES
        block = max(1, entries // (q.shape[0] * q.shape[1] * keys))
        triangle = seen.is_triangle and not self.carries  # then no row of a block sees what comes after it
        carry = self.begin(q, k, v, seen)
        parts: list[Tensor] = []
        kept_weights = kept_mixed = None
        again = again and rows > block
        for start in range(0, rows, block):
            stop = min(start + block, rows)
            last = stop if triangle else keys
            inputs = (q[:, :, start:stop], k[:, :, :last], values[:, :, :last], seen, (start, stop, last), carry)
            mixed, weights, carry = checkpoint(self.mix, *inputs, use_reentrant=False) if again else self.mix(*inputs)
            parts.append(mixed)
            if keep is not None:
                kept_weights = chosen(kept_weights, nn.functional.pad(weights, (0, keys - last)), keep, start)
                kept_mixed = chosen(kept_mixed, mixed, keep, start)
        return self.finish(torch.cat(parts, 2)), kept_weights, kept_mixed

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        values: Tensor,
        seen: "Seen",
        block: tuple[int, int, int],
        carry: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return weighted values, weights, and what the next block of rows is told, of one block of rows.

        block: its first row, the one after its last, and how many keys it is given. What it sees is made in here, so that
        nothing of that is kept for the backward pass.
        """
        part = seen.block(*block)
        part.carry = dict(carry)
        hidden = ~part.mask
        scores = self.biased(self.scores(q, k, part), part)
        if type(self).scores is Mechanism.scores and not torch.is_grad_enabled():
            scores.masked_fill_(hidden, HIDDEN)  # made here, so nobody else's
        else:
            scores = scores.masked_fill(hidden, HIDDEN)
        weights = self.weights(scores, part)
        same = hidden.shape[1] in (1, weights.shape[1])
        weights = weights.masked_fill(hidden if same else hidden.all(1, keepdim=True), 0.0)
        used = nn.functional.dropout(weights, seen.forward.dropout) if seen.forward.dropout else weights
        batch, maps, rows, keys = used.shape
        mixed = (used.reshape(batch, values.shape[1], -1, keys) @ values).view(batch, maps, rows, -1)
        return mixed, weights, part.carry

    def biased(self, scores: Tensor, seen: "Seen") -> Tensor:
        """Return scores with all that the position and the model add to them."""
        if self.position_bias is not None and self.position_bias.active:
            scores = scores + self.position_bias(seen.distance)
        return seen.added(scores)

    def learned(self) -> dict[str, list[float]]:
        """Return what a record and a training log tell of what was learned: values by name, one for each head."""
        return {
            key: p.detach().float().tolist()
            for key, p in self.named_parameters()
            if p.ndim == 1 and len(p) == self.layer.heads and not key.startswith("position_bias.")
        }

    def take_over(self, other: "Mechanism") -> None:
        """Go on from what a mechanism of this kind learned at another training length."""
        self.load_state_dict(other.state_dict())

    @classmethod
    def runs_on_sdpa(cls) -> bool:
        """Tell whether only queries and keys are changed, so that sdpa can do the rest."""
        parts = ("scores", "weights", "join", "finish", "begin", "attend", "mix")
        return all(getattr(cls, part) is getattr(Mechanism, part) for part in parts)


def chosen(kept: Tensor | None, block: Tensor, keep: Tensor, start: int) -> Tensor:
    """Put into `kept` (batch, maps, chosen, any) those of the rows `keep` (batch, chosen) that are in a block from row `start`."""
    batch, maps, rows, last = block.shape
    inside = (keep >= start) & (keep < start + rows)
    index = (keep - start).clamp(0, rows - 1)[:, None, :, None].expand(batch, maps, -1, last)
    found = block.gather(2, index)
    return found if kept is None else torch.where(inside[:, None, :, None], found, kept)


def per_head(value: float, heads: int) -> nn.Parameter:
    """Return a learned number for each head, float32, all `value` at first."""
    return nn.Parameter(torch.full((heads,), float(value), dtype=torch.float32))


def shared_parameters(mechanisms: Mapping[str, Mechanism]) -> dict[str, str]:
    """Return which parameters of a model's mechanisms are one, {name in a later layer: name in the first}, and tell transformers.

    mechanisms: by the name of their attention module. A checkpoint then holds such a parameter once, under its first name.
    """
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for module, mechanism in mechanisms.items():
        mechanism._tied_weights_keys = {}
        for key, parameter in mechanism.named_parameters():
            name = f"{module}.ssmax.{key}"
            if (origin := first.setdefault(id(parameter), name)) != name:
                ties[name], mechanism._tied_weights_keys[key] = origin, key
    return ties


def positive(option: str, value: float) -> float:
    """Return value, refusing what is not clearly above 0."""
    if not value >= 1e-6:
        raise UserError(f"attention option {option}={value:g}: allowed are numbers from 1e-6")
    return value


def drawn(layer: Layer, std: float, *shape: int) -> Tensor:
    """Return normal first values, the same for the same layer and seed."""
    generator = torch.Generator().manual_seed(10_007 * layer.seed + layer.index)
    return torch.randn(*shape, generator=generator) * std
