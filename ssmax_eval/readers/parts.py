"""Can a model be read in parts over a KV cache? Compared once with the whole forward on a short input, then allowed or refused."""

from contextlib import suppress

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.layers import reads_on
from ..models.encoders import is_encoder
from ..position.rotary import rope_that_turns
from .attention_proof import ROWS
from .head import logits_of, nll_of
from .nll import token_nll
from .prefill import prefill
from .preflight import FOUND
from .thresholds import lowered, proof_length
from .tolerance import close, difference

LEAST_CHUNK = 256  # tokens; where memory still runs out, there is no score
MASK_ENTRIES = 2**28  # of a chunk's rows and all keys, that are tried when memory ran out; 3 bytes each in bfloat16


def unlike_in_parts(model: PreTrainedModel, chunk: int, inputs: int) -> str | None:
    """Return why a model cannot be read `chunk` of `inputs` tokens at a time over a KV cache; None if its numbers stay the same."""
    if is_encoder(model):
        return "it is an encoder, which reads a text whole"
    if (kind := rope_that_turns(model)) is not None:
        return f"its RoPE ({kind}) turns by the length of each forward"
    setting = tuple((name, type(each).__name__) for name, each in mechanisms_of(model).items())
    known = FOUND.setdefault(model, {})
    length = proof_length(model, inputs)
    part = max(1, min(chunk, length // 3))
    key = (part, length, inputs, setting, model.dtype)
    if key not in known:
        known[key] = compare_parts(model, part, length, inputs)
    return known[key]


@torch.inference_mode()
def compare_parts(model: PreTrainedModel, part: int, length: int, longest: int) -> str | None:
    """Return what differs when an input of `length` tokens is read in parts; None for nothing."""
    ids = torch.randint(
        len(model.get_input_embeddings().weight), (1, length), generator=torch.Generator().manual_seed(0)
    )
    ids = ids.to(reads_on(model))
    try:
        pairs = whole_and_parts(model, ids, part)
    except UserError as error:  # a mechanism that reads whole sequences only says so
        return str(error)
    except Exception as error:  # caches fail in as many ways as there are models
        return f"it cannot be read over a KV cache ({type(error).__name__})"
    with lowered(model, length, longest) as thresholds, suppress(Exception):
        pairs += whole_and_parts(model, ids, part) if thresholds else []
    if all(close(*pair, model.dtype) for pair in pairs):
        return None
    away = max(difference(*pair) for pair in pairs)
    return f"its numbers in parts differ from the whole forward's by {away:.3g} nats a token on {length} tokens"


def whole_and_parts(model: PreTrainedModel, ids: Tensor, part: int) -> list[tuple[Tensor, Tensor]]:
    """Return each token's nll of the whole forward and of parts, over a cache as the loss has it, and as the needle's last rows do."""
    whole, parts = token_nll(model, ids), token_nll(model, ids, part)
    last, _ = logits_of(model, ids, slice(-ROWS, None), use_cache=False)
    cache = prefill(model, ids, ids.shape[1] - ROWS, part, keep_all=True)
    kept, _ = logits_of(model, ids[:, -ROWS:], slice(None), past_key_values=cache, use_cache=True)
    return [(whole, parts), (nll_of(last, ids[:, -ROWS:]), nll_of(kept, ids[:, -ROWS:]))]


def refuse_unlike_parts(model: PreTrainedModel, chunk: int | None, inputs: int) -> None:
    """Raise UserError if `inputs` tokens would be read in chunks that the model treats otherwise than the whole."""
    if chunk is not None and chunk < inputs and (why := unlike_in_parts(model, chunk, inputs)) is not None:
        raise UserError(f"chunk {chunk}: {type(model).__name__} cannot be read in parts: {why}; leave it out")


def smaller_chunk(model: PreTrainedModel, chunk: int | None, length: int) -> int | None:
    """Return the chunk to try when memory ran out; None if there is none left, or if parts would change the model's numbers."""
    smaller = min(min(chunk or length, length) // 4, MASK_ENTRIES // length)
    return smaller if smaller >= LEAST_CHUNK and unlike_in_parts(model, smaller, length) is None else None
