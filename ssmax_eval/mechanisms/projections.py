"""Hooks on a layer's own projections to queries and keys, for mechanisms that change them where caches still hold what they make."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from .mechanism import Mechanism

SPLIT = ("c_attn", "qkv_proj")  # GPT-2, Phi-3: all queries, then all keys, then all values
BY_HEAD = ("query_key_value",)  # GPT-NeoX: each head's query, key and value


@dataclass(eq=False)
class Changed:
    """Let a mechanism change what one of a layer's projections gives: a forward hook of it."""

    mechanism: Mechanism
    name: str

    def __call__(self, linear: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if not self.mechanism.active:
            return output
        x, layer = arguments[0], self.mechanism.layer
        query, key = layer.heads * layer.head_dim, layer.key_heads * layer.head_dim
        with torch.autocast(x.device.type, enabled=False):
            if self.name == "q_proj":
                return self.of(output, x, "query")
            if self.name == "k_proj":
                return self.of(output, x, "key")
            if self.name in SPLIT:
                q, k, v = output.split([query, key, output.shape[-1] - query - key], -1)
                return torch.cat([self.of(q, x, "query"), self.of(k, x, "key"), v], -1)
            q, k, v = output.unflatten(-1, (layer.heads, 3, -1)).unbind(-2)
            q, k = self.of(q.flatten(-2), x, "query"), self.of(k.flatten(-2), x, "key")
            return torch.stack([q.view_as(v), k.view_as(v), v], -2).flatten(-3)

    def of(self, projected: Tensor, x: Tensor, to: Literal["query", "key"]) -> Tensor:
        """Return a projection (batch, rows, heads * head_dim) changed, in its own dtype."""
        heads = projected.unflatten(-1, (-1, self.mechanism.layer.head_dim)).float()
        return self.mechanism.project(heads, x.float(), to).flatten(-2).to(projected.dtype)


def changes(mechanism: Mechanism) -> bool:
    """Tell whether a mechanism changes projections."""
    return type(mechanism).project is not Mechanism.project


def projections(module: nn.Module, mechanism: Mechanism) -> dict[str, nn.Module]:
    """Return an attention module's own projections to queries and keys, by name, one where they are fused with the values'.

    Raises UserError where they cannot be told apart.
    """
    layer = mechanism.layer
    width = (layer.heads + 2 * layer.key_heads) * layer.head_dim
    parts = {name: part for name, part in module.named_children() if not isinstance(part, Mechanism)}
    fused = [name for name in (*SPLIT, *BY_HEAD) if name in parts and outputs(parts[name], layer.width) == width]
    apart = outputs(parts.get("q_proj"), layer.width) == layer.heads * layer.head_dim
    apart = apart and outputs(parts.get("k_proj"), layer.width) == layer.key_heads * layer.head_dim
    names = ["q_proj", "k_proj"] if apart else fused[:1]
    if not names or (names[0] in BY_HEAD and layer.heads != layer.key_heads):
        raise UserError(
            f"attention {mechanism.name}: {type(module).__name__} has no projections to queries and keys that can be told apart; use a "
            "model that has (Llama, Qwen, Mistral, GPT-2, GPT-NeoX)"
        )
    return {name: parts[name] for name in names}


def hook(module: nn.Module, mechanism: Mechanism) -> None:
    """Let a mechanism change the projections of an attention module. Raises UserError where they cannot be told apart."""
    for name, part in projections(module, mechanism).items():
        part.register_forward_hook(Changed(mechanism, name))


def unhook(module: nn.Module) -> None:
    """Take off what hook() put on."""
    for part in module.modules():
        for key, each in [*part._forward_hooks.items()]:
            if isinstance(each, Changed):
                del part._forward_hooks[key]


def outputs(part: nn.Module | None, inputs: int) -> int | None:
    """Return how many channels a linear map of so many inputs gives; None for what is none."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or inputs not in weight.shape:
        return None
    return weight.numel() // inputs
