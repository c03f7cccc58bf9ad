"""What a model's head reads: the decoder's output, of which only the rows that are asked for get to it, so that full logits never exist."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LOGITS_AT_ONCE = 2**23  # numbers; 32 MiB in float32
# models whose head was found to read more than the rows that it is handed
READS_MORE: WeakSet[PreTrainedModel] = WeakSet()


def head_is_apart(model: PreTrainedModel) -> bool:
    """Tell whether a model's logits come from its decoder's output, row by row: preflight compares, and sees where they do not."""
    return model not in READS_MORE and decoder_of(model) is not None


def decoder_of(model: PreTrainedModel) -> nn.Module | None:
    """Return the module whose output the head reads; None for a model that does not tell."""
    decoder, embeddings = model.get_decoder(), model.get_input_embeddings()
    if decoder is not model and embeddings in decoder.modules():
        return decoder
    # Llama 4 names itself, ModernBERT its head
    return next((part for part in model.children() if part is not embeddings and embeddings in part.modules()), None)


@torch.inference_mode()
def logits_of(model: PreTrainedModel, ids: Tensor, rows: slice | Tensor, **options: Any) -> tuple[Tensor, Any]:
    """Return the logits (batch, rows, vocabulary) of some rows of ids, and the decoder's whole output, or all logits.

    Only these rows reach the head, where the decoder's output is all that the head reads (head_is_apart).
    """
    if head_is_apart(model):
        with hidden_states(model, head_rows=rows) as caught:
            logits: Tensor = model(input_ids=ids, **options).logits
        return logits, caught[0]
    logits = model(input_ids=ids, **options).logits
    return logits[:, rows], logits


@contextmanager
def hidden_states(model: PreTrainedModel, head_rows: slice | Tensor) -> Iterator[list[Any]]:
    """Catch what the decoder hands to the head while the block runs; of it the head gets some rows only.

    This and not `logits_to_keep`: some models hand that on to their decoder, which then leaves rows out, and some do not
    have it.
    """
    caught: list[Any] = []

    def catch(module: nn.Module, arguments: Any, output: Any) -> Any:
        caught.append(output)
        return with_rows(output, head_rows)

    decoder = decoder_of(model)
    assert decoder is not None
    hook = decoder.register_forward_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()


def with_rows(output: Any, rows: slice | Tensor) -> Any:
    """Return a decoder's output with some of its rows."""
    if isinstance(output, tuple):
        return (output[0][:, rows], *output[1:])
    part = copy.copy(output)
    part.last_hidden_state = output.last_hidden_state[:, rows]
    return part


def nll_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the nll of targets (batch, rows) from logits (batch, rows or more, vocabulary), a few rows at a time."""
    rows = max(1, LOGITS_AT_ONCE // (logits.shape[2] * len(targets)))
    parts = []
    for start in range(0, targets.shape[1], rows):
        stop = min(start + rows, targets.shape[1])
        part = logits[:, start:stop].float()
        own = part.gather(2, targets[:, start:stop, None])[..., 0]
        parts.append((part.logsumexp(-1) - own).cpu())
    return torch.cat(parts, 1)


def head_nll(model: PreTrainedModel, decoded: Any, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the nll of targets (batch, rows) from a decoder's output, through the model's own head and all it does after it.

    ids: any tokens of that shape; the decoder does not run again.
    """
    rows = max(1, LOGITS_AT_ONCE // (len(model.get_input_embeddings().weight) * len(ids)))
    parts = []
    for start in range(0, targets.shape[1], rows):
        stop = min(start + rows, targets.shape[1])
        part = with_rows(decoded, slice(start, stop))
        if not isinstance(part, tuple) and "past_key_values" in part:
            part.past_key_values = None
        with decoder_returning(decoder_of(model), part):
            logits = model(input_ids=ids[:, start:stop], use_cache=False).logits
        parts.append(nll_of(logits, targets[:, start:stop]))
    return torch.cat(parts, 1)


@contextmanager
def decoder_returning(decoder: nn.Module | None, output: Any) -> Iterator[None]:
    """Let a decoder return `output` without running: what a model does around its head (scales, caps) is then its own code."""
    own = vars(decoder).get("forward")
    vars(decoder)["forward"] = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del vars(decoder)["forward"]
        if own is not None:  # somebody wrapped it
            vars(decoder)["forward"] = own
