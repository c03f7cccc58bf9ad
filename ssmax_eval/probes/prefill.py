"""Contexts read in chunks over a KV cache; smaller chunks when memory runs out.

A forward over all tokens holds one layer's activations; chunks hold every layer's keys and values, and a mask. They are for
models whose keys and values are few (grouped heads, windows, short models) beside wide feed-forward layers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..errors import UserError
from ..models.rope import rotary_modules

UNLIKE_IN_PARTS = (
    "bamba",
)  # transformers' own cached forward differs from its whole one by up to a nat a token (5.17, 5.23)
LEAST_CHUNK = 256  # tokens; where memory still runs out, there is no score
# rows of a chunk times all keys: beyond 2**32 CUDA's memory-efficient attention reads other rows of the mask (PyTorch issue 187225)
MOST_MASK_ENTRIES = 2**31
MASK_ENTRIES = 2**28  # of a chunk's rows and all keys, that are tried when memory ran out; 3 bytes each in bfloat16


def chunks(model: PreTrainedModel, stop: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) that cut `stop` tokens into chunks of at most `chunk`. Raises UserError for a model that cannot be cut."""
    refuse_unlike_parts(model, chunk, stop)
    chunk = min(chunk, max(1, MOST_MASK_ENTRIES // stop))
    for start in range(0, stop, chunk):
        yield start, min(start + chunk, stop)


def prefill(model: PreTrainedModel, ids: Tensor, stop: int, chunk: int, keep_all: bool = False) -> DynamicCache:
    """Read the first `stop` tokens of ids (batch, length), no padding, `chunk` at a time and return their KV cache.

    keep_all: windowed layers keep the keys behind their window too, so that every layer's keys are the prompt's tokens.
    """
    cache = DynamicCache(config=model.config)
    if keep_all:
        cache.layers = [
            DynamicLayer() if isinstance(each, DynamicSlidingWindowLayer) else each for each in cache.layers
        ]
    for start, end in chunks(model, stop, chunk):
        model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def readable_in_parts(model: PreTrainedModel) -> bool:
    """Tell whether a model computes the same in parts: RoPE's angles must not depend on a forward's length."""
    if model.config.model_type.removeprefix("ssmax_") in UNLIKE_IN_PARTS:
        return False
    kinds = [str(getattr(rotary, "rope_type", "")) for rotary in rotary_modules(model).values()]
    return not any(word in kind for kind in kinds for word in ("dynamic", "longrope"))


def refuse_unlike_parts(model: PreTrainedModel, chunk: int | None, inputs: int) -> None:
    """Raise UserError if `inputs` tokens would be read in chunks that the model treats otherwise than the whole."""
    if chunk is not None and chunk < inputs and not readable_in_parts(model):
        raise UserError(
            f"chunk {chunk}: this model (dynamic or longrope RoPE, Bamba) computes otherwise in parts than at once; leave it out"
        )


def smaller_chunk(model: PreTrainedModel, chunk: int | None, length: int) -> int | None:
    """Return the chunk to try when memory ran out, None if there is none left."""
    smaller = min(min(chunk or length, length) // 4, MASK_ENTRIES // length)
    return smaller if smaller >= LEAST_CHUNK and readable_in_parts(model) else None


def is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    signs = ("out of memory", "DefaultCPUAllocator", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in signs)
