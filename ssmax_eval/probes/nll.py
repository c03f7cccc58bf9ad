"""Each token's nll in one forward: the head in chunks of rows, so that full logits never exist; the context in chunks too, if asked."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ..errors import UserError
from .prefill import chunks

LOGITS_AT_ONCE = 2**23  # numbers; 32 MiB in float32


@torch.inference_mode()
def token_nll(model: PreTrainedModel, ids: Tensor, chunk: int | None = None) -> Tensor:
    """Return the nll in nats of every token but the first, given all before it, float32 (batch, length - 1) on the CPU.

    ids (batch, length), sequences without padding. chunk: tokens of context to prefill at a time over a KV cache, for
    lengths whose activations do not fit; None reads them at once. Raises UserError for RoPE that is not the same in parts.
    """
    ids = ids.to(model.device)
    inputs = ids.shape[1] - 1
    if chunk is None or chunk >= inputs:
        with hidden_states(model) as caught:
            model(input_ids=ids[:, :-1], logits_to_keep=1, use_cache=False)
        return head_nll(model, caught[0], ids[:, :-1], ids[:, 1:])
    cache = DynamicCache(config=model.config)
    parts = []
    for start, stop in chunks(model, inputs, chunk):
        with hidden_states(model) as caught:
            model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True, logits_to_keep=1)
        parts.append(head_nll(model, caught[0], ids[:, start:stop], ids[:, start + 1 : stop + 1]))
    return torch.cat(parts, 1)


def nll_at(model: PreTrainedModel, decoded: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the nll in nats of the tokens at chosen positions, from a decoder's output over ids: float32 (batch, positions) on the CPU.

    ids (batch, length); positions (batch, positions), each at least 1.
    """
    positions = positions.to(ids.device)
    part = copy.copy(decoded)
    rows = (positions - 1)[..., None].expand(-1, -1, decoded.last_hidden_state.shape[-1])
    part.last_hidden_state = decoded.last_hidden_state.gather(1, rows)
    return head_nll(model, part, ids[:, : positions.shape[1]], ids.gather(1, positions))


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the module whose output the head reads. Raises UserError for a model that does not tell."""
    decoder = model.get_decoder()
    inner = getattr(model, "model", None) if decoder is model else decoder  # Llama 4 names itself
    if not isinstance(inner, nn.Module):
        raise UserError(f"{type(model).__name__}: its decoder cannot be told from its head; the loss needs them apart")
    return inner


@contextmanager
def hidden_states(model: PreTrainedModel) -> Iterator[list[Any]]:
    """Catch what the decoder hands to the head while the block runs."""
    caught: list[Any] = []
    hook = decoder_of(model).register_forward_hook(lambda module, args, output: caught.append(output))
    try:
        yield caught
    finally:
        hook.remove()


def head_nll(model: PreTrainedModel, decoded: Any, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the nll of targets (batch, rows) from a decoder's output, through the model's own head and all it does after it.

    ids: any tokens of that shape; the decoder does not run again.
    """
    rows = max(1, LOGITS_AT_ONCE // (model.get_output_embeddings().weight.shape[0] * len(ids)))
    hidden = decoded.last_hidden_state
    parts = []
    for start in range(0, hidden.shape[1], rows):
        part = copy.copy(decoded)
        part.last_hidden_state = hidden[:, start : start + rows]
        part.past_key_values = None
        with decoder_returning(decoder_of(model), part):
            logits = model(input_ids=ids[:, start : start + rows], use_cache=False).logits.float()
        own = logits.gather(2, targets[:, start : start + rows, None])[..., 0]
        parts.append((logits.logsumexp(-1) - own).cpu())
    return torch.cat(parts, 1)


@contextmanager
def decoder_returning(decoder: nn.Module, output: Any) -> Iterator[None]:
    """Let a decoder return `output` without running: what a model does around its head (scales, caps) is then its own code."""
    own = vars(decoder).get("forward")
    vars(decoder)["forward"] = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del vars(decoder)["forward"]
        if own is not None:  # somebody wrapped it
            vars(decoder)["forward"] = own
