"""Each token's nll in one forward: the head in chunks of rows, so that full logits never exist; the context in chunks too, if asked."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..mechanisms.layers import reads_on
from .head import head_is_apart, head_nll, hidden_states, nll_of
from .prefill import chunks


@torch.inference_mode()
def token_nll(model: PreTrainedModel, ids: Tensor, chunk: int | None = None) -> Tensor:
    """Return the nll in nats of every token but the first, given all before it, float32 (batch, length - 1) on the CPU.

    ids (batch, length), sequences without padding. chunk: tokens of context to prefill at a time over a KV cache, for
    lengths whose activations do not fit; None reads them at once. Raises UserError for a model that is not the same in parts.
    """
    ids = ids.to(reads_on(model))
    inputs = ids.shape[1] - 1
    if chunk is None or chunk >= inputs:
        return part_nll(model, ids[:, :-1], ids[:, 1:], use_cache=False)
    cache = DynamicCache(config=model.config)
    parts = [
        part_nll(model, ids[:, start:stop], ids[:, start + 1 : stop + 1], past_key_values=cache, use_cache=True)
        for start, stop in chunks(model, inputs, chunk)
    ]
    return torch.cat(parts, 1)


def part_nll(model: PreTrainedModel, ids: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Return the nll of targets (batch, rows), each given the ids before it, from one forward over ids (batch, rows)."""
    if head_is_apart(model):
        with hidden_states(model, slice(-1, None)) as caught:
            model(input_ids=ids, **options)
        return head_nll(model, caught[0], ids, targets)
    return nll_of(model(input_ids=ids, **options).logits, targets)


def nll_at(model: PreTrainedModel, decoded: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the nll in nats of the tokens at chosen positions, from a decoder's output over ids: float32 (batch, positions) on the CPU.

    ids (batch, length); positions (batch, positions), each at least 1.
    """
    part = copy.copy(decoded)
    hidden = decoded.last_hidden_state  # on the device of the last layer
    rows = (positions - 1)[..., None].expand(-1, -1, hidden.shape[-1]).to(hidden.device)
    positions = positions.to(ids.device)
    part.last_hidden_state = hidden.gather(1, rows)
    return head_nll(model, part, ids[:, : positions.shape[1]], ids.gather(1, positions))
