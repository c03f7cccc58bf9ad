"""One registered attention function for every mechanism and for recording: the only file that touches transformers' interface.

What stands on a layer is at `<attention module>.ssmax`; a layer without it is softmax. A mechanism that changes queries and keys
only is handed on to transformers' own `sdpa_attention_forward`; without one that is "sdpa" bit for bit. Any other attends by
itself, in float32. The keys that each row sees are counted from what sdpa is about to do (its mask, or its causal rule when it
has none), so padding, packing, chunked prefill and cached decoding need no special case.

A model without a mechanism runs on its own attention implementation: some models ask for its name and compute otherwise under
another one. Our function stands in for it where a mechanism or a recorder needs it, and readers.preflight compares the two.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import UserError
from .behind import behind
from .dropped import refuse_dropped
from .edit import Edit
from .implementation import IMPLEMENTATION, our_function
from .layers import attention_modules, layer_in, layer_indices, layer_list
from .mechanism import Layer, Mechanism
from .recorder import Recorded, Recorder
from .registry import is_own
from .seen import Seen, forward_of

SOFTMAX = Mechanism(Layer(heads=1, train_length=2))  # of layers that carry none


class Watched(NamedTuple):
    """What a recorder leaves at an attention module: the rows it wants (batch, chosen), and where they go."""

    rows: Tensor
    offer: Callable[[Recorded | None], None]


def named_in_errors(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let what a mechanism of somebody else's raises be a UserError that names it, and not the model."""

    @functools.wraps(forward)
    def attend(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        try:
            return forward(module, *arguments, **options)
        except UserError:
            raise
        except Exception as error:
            mechanism: Mechanism | None = getattr(module, "ssmax", None)
            if mechanism is None or is_own(type(mechanism)) or "memory" in str(error):
                raise
            raise UserError(
                f"attention {mechanism.name}: it cannot be run ({type(error).__name__}: {error})"
            ) from error

    return attend


@named_in_errors
def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend as a layer's mechanism does, and show a recorder its rows.

    query (batch, heads, rows, head_dim); key, value (batch, key heads, keys, head_dim); attention_mask (batch, 1 or heads, rows,
    keys), bool or additive, or None. Returns the output (batch, rows, heads, head_dim). Raises UserError for what it would drop.
    """
    carried, mechanism, biased = standing(module, key.shape[2], kwargs)
    watched: Watched | None = getattr(module, "watched", None)
    edit: Edit | None = vars(module).get("edit")
    seen = Seen(forward_of(module, query, key, attention_mask, **kwargs))
    if carried is not None:
        refuse_narrowed(mechanism, seen, kwargs.get("sliding_window"))
    if not biased and mechanism.runs_on_sdpa():
        # in float32 and rounded once: a rounded C(n) would be a wrong temperature
        with torch.autocast(query.device.type, enabled=False):
            query, key = mechanism.query(query, seen), mechanism.key(key, seen)
            query, attention_mask, seen = edited_by(edit, mechanism, query, key, seen)
        if (before := seen.forward.before) and attention_mask is None:
            front, own = (key[:, :, :before], value[:, :, :before]), (key[:, :, before:], value[:, :, before:])
            output = behind(query, front, own, seen.scaling).transpose(1, 2)
        else:
            output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        if watched is not None:
            with torch.autocast(query.device.type, enabled=False):
                watched.offer(recorded_of(mechanism, query, key, value, output, seen.at(watched.rows.to(query.device))))
        return output, None
    if mechanism is SOFTMAX and carried is not None:  # switched off, but not its position
        mechanism = Mechanism(carried.layer)
        mechanism.position_bias = carried.position_bias
    keep = None if watched is None else watched.rows.to(query.device)
    # autocast would round the products to bfloat16 again, and softmax and sums of them
    with torch.autocast(query.device.type, enabled=False):
        query, key = mechanism.query(query, seen).float(), mechanism.key(key, seen).float()
        query, _, seen = edited_by(edit, mechanism, query, key, seen)
        out, weights, mixed = mechanism.attend(query, key, value.float(), seen, keep)
        if watched is not None and keep is not None:
            offered = None
            if mechanism.has_map:
                assert mixed is not None
                offered = Recorded(mechanism, seen.at(keep), mechanism.join(value.float()), mixed, given=weights)
            watched.offer(offered)
    return out.transpose(1, 2).to(value.dtype).contiguous(), None


def standing(module: nn.Module, keys: int, given: Mapping[str, Any]) -> tuple[Mechanism | None, Mechanism, bool]:
    """Return what a layer carries, what it attends with, and whether its position adds to the scores.

    keys: how many it sees; given: what it asks of attention besides. Raises UserError for what our function would drop.
    """
    carried: Mechanism | None = getattr(module, "ssmax", None)
    if carried is not None:
        cast(Any, module).heard = True  # attach.refuse_unheard
    mechanism = carried if carried is not None and carried.active else SOFTMAX
    biased = carried is not None and carried.position_bias is not None and carried.position_bias.active
    refuse_dropped(module, keys, given, biased)
    return carried, mechanism, biased


def edited_by(
    edit: Edit | None, mechanism: Mechanism, query: Tensor, key: Tensor, seen: Seen
) -> tuple[Tensor, Tensor | None, Seen]:
    """Return queries, mask and what rows see, as an experiment leaves them."""
    if edit is None:
        return query, seen.forward.attention_mask, seen
    query = edit.scaled(query, seen)
    mask = edit.shifted(mechanism, query, key, seen)
    if mask is None:
        return query, seen.forward.attention_mask, seen
    return query, mask, Seen(replace(seen.forward, attention_mask=mask))


def refuse_narrowed(mechanism: Mechanism, seen: Seen, window: int | None) -> None:
    """Raise UserError where a mechanism would run on fewer keys than it was made for: in a window, or in parts of a whole."""
    given = seen.forward
    if window and given.keys > window and not mechanism.windowed and mechanism is not SOFTMAX:
        raise UserError(
            f"attention {mechanism.name} on a layer with a window of {window} tokens: {given.keys} tokens no longer fit into it; "
            "ask for shorter ones, or swap the mechanism in again for this length"
        )
    if mechanism.cache == "whole" and given.rows != given.keys:
        raise UserError(
            f"attention {mechanism.name}: it reads whole sequences only, not {given.rows} of {given.keys} tokens over a KV cache; "
            "leave chunk out and use forced scoring"
        )


def recorded_of(
    mechanism: Mechanism, query: Tensor, key: Tensor, value: Tensor, output: Tensor, seen: Seen
) -> Recorded:
    """Return what a layer did in chosen rows that sdpa computed: the scores whose softmax it kept to itself."""
    rows = seen.index
    batch, heads, _, channels = query.shape
    chosen = query.gather(2, rows[:, None, :, None].expand(batch, heads, -1, channels))
    scores = seen.added(mechanism.scores(chosen, key, seen)).masked_fill(~seen.mask, -torch.inf)
    mixed = output.transpose(1, 2)
    mixed = mixed.gather(2, rows[:, None, :, None].expand(batch, heads, -1, mixed.shape[-1])).float()
    return Recorded(mechanism, seen, value, mixed, scores=scores)


# both under one name: an attention function without a mask function of its name gets no mask at all
AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@contextmanager
def recording(model: PreTrainedModel, recorder: Recorder) -> Iterator[Recorder]:
    """Offer what every attention layer does to a recorder while the block runs, through our attention function.

    Raises UserError for a model whose attention our function cannot run.
    """
    running: list[int] = []

    def offer(name: str, recorded: Recorded | None) -> None:
        recorder.called.append(name)
        if recorded is not None:
            recorder.offer(running[-1] if running else layer_in(name), recorded)

    def enter(index: int, *_: Any) -> None:
        running[:] = [index]

    modules = attention_modules(model)
    hooks = [layer.register_forward_pre_hook(partial(enter, i)) for i, layer in enumerate(layer_list(model))]
    try:
        for name, module in modules.items():
            # no submodule, no parameter: a plain attribute
            vars(module)["watched"] = Watched(recorder.rows, partial(offer, name))
        with our_function(model):
            yield recorder
    finally:
        for hook in hooks:
            hook.remove()
        for module in modules.values():
            vars(module).pop("watched", None)


@contextmanager
def edited(model: PreTrainedModel, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Run a block with edits on layers, by their index in the decoder, through our attention function.

    Raises UserError for a model whose attention our function cannot run.
    """
    modules, indices = attention_modules(model), layer_indices(model)
    try:
        for name, module in modules.items():
            if indices[name] in edits:
                vars(module)["edit"] = edits[indices[name]]
        with our_function(model):
            yield
    finally:
        for module in modules.values():
            vars(module).pop("edit", None)
