"""Contexts read in chunks over a KV cache; smaller chunks when memory runs out.

A forward over all tokens holds one layer's activations; chunks hold every layer's keys and values, and a mask. They are for
models whose keys and values are few (grouped heads, windows, short models) beside wide feed-forward layers.
"""

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..errors import UserError
from ..position.rotary import rope_that_turns
from .head import logits_of

# rows of a chunk times all keys: beyond 2**32 CUDA's memory-efficient attention reads other rows of the mask (PyTorch issue 187225)
MOST_MASK_ENTRIES = 2**31
ENDLESS = 2**31  # tokens of a window that hides nothing


def chunks(model: PreTrainedModel, stop: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) that cut `stop` tokens, at least one, into chunks of at most `chunk`.

    Raises UserError for RoPE that turns by the length of each forward.
    """
    if (kind := rope_that_turns(model)) is not None:
        raise UserError(f"chunk {chunk}: RoPE of type {kind} turns by the length of each forward; leave it out")
    chunk = min(chunk, max(1, MOST_MASK_ENTRIES // stop))
    for start in range(0, stop, chunk):
        yield start, min(start + chunk, stop)


def prefill(model: PreTrainedModel, ids: Tensor, stop: int, chunk: int, keep_all: bool = False) -> DynamicCache:
    """Read the first `stop` tokens, at least one, of ids (batch, length), no padding, `chunk` at a time and return their KV cache.

    keep_all: windowed layers keep the keys behind their window too, so that every layer's keys are the prompt's tokens.
    """
    cache = empty_cache(model, keep_all)
    for start, end in chunks(model, stop, chunk):
        logits_of(model, ids[:, start:end], slice(-1, None), past_key_values=cache, use_cache=True)
    return cache


def empty_cache(model: PreTrainedModel, keep_all: bool) -> DynamicCache:
    """Return a cache that nothing was read into. keep_all: as prefill's."""
    cache = DynamicCache(config=model.config)
    for i, layer in enumerate(cache.layers if keep_all else []):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = DynamicLayer()
        elif isinstance(layer, DynamicSlidingWindowLayer):  # with the state of a recurrence beside its keys
            layer.sliding_window = ENDLESS
    return cache


def copied_cache(cache: Any) -> Any:
    """Return a copy of what a model carries that a forward may write to; keys and values that only grow are not copied."""
    if type(cache) is not DynamicCache:
        return copy.deepcopy(cache)
    own = copy.copy(cache)
    # a layer of keys and values makes new tensors when it grows; states of other kinds are written over
    own.layers = [copy.copy(each) if type(each) is DynamicLayer else copy.deepcopy(each) for each in cache.layers]
    return own
