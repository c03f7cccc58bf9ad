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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import UserError
from .behind import behind
from .dropped import refuse_dropped
from .edit import Edit
from .layers import attention_modules, layer_in, layer_indices, layer_list
from .mechanism import Layer, Mechanism
from .recorder import Recorded, Recorder
from .registry import is_own
from .seen import Seen, forward_of

IMPLEMENTATION = "ssmax_eval"
PACKED = "ssmax_eval_packed"  # of several texts in one forward (packed.py)
OURS = (IMPLEMENTATION, PACKED)
# transformers' own; what else a config names is a user's function, and the model's native mechanism
STOCK_IMPLEMENTATIONS = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
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


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise UserError for a model whose attention our function cannot run."""
    name = type(model).__name__
    kinds = {type(module).__name__.lower() for module in model.modules()}
    if not attention_modules(model) and not any("attention" in kind for kind in kinds):
        raise UserError(f"{name}: attention mechanisms and masses are not applicable: it has no attention layers")
    if not attention_modules(model) or not model._can_set_attn_implementation():
        raise UserError(
            f"{name} does not use transformers' attention interface, so its attention cannot be exchanged or recorded; "
            "use a model that does (Llama, Qwen, Mistral, Gemma 3, GPT-2, GPT-NeoX, OPT, ...), or the needle and loss probes"
        )
    # up to 5.20 transformers calls soft-capped models fit for sdpa, which then drops the cap without a word
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped or not model._supports_sdpa:
        raise UserError(
            f"{name} uses logit soft-capping or attention sinks that sdpa cannot express, so no mechanism or recorder can stand "
            "in; use a model that supports sdpa, or the needle and loss probes"
        )


def native_mechanism(model: PreTrainedModel) -> str:
    """Return the name of what a model attends with by itself: its mechanism, a user's own attention function, or softmax."""
    if (entry := getattr(model.config, "ssmax", None)) is not None:
        return str(entry["attention"])
    return mechanism_named(model.config.get_text_config()._attn_implementation)


def mechanism_named(implementation: str | None) -> str:
    """Return what an attention implementation computes: softmax if it is transformers' own, else its name."""
    name = str(implementation or "eager")
    if name not in (*STOCK_IMPLEMENTATIONS, *OURS):
        return name
    function = AttentionInterface._global_mapping.get(name, sdpa_attention_forward)
    own = name in OURS or str(getattr(function, "__module__", "")).startswith("transformers.")
    return "softmax" if own else f"own-{name}"  # a function that somebody put in its place


@contextmanager
def our_function(model: PreTrainedModel, name: str = IMPLEMENTATION) -> Iterator[None]:
    """Run a block with our attention function, or one of another name, in every layer; what they ran on comes back afterwards."""
    refuse_unsupported(model)
    before = implementations(model)
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        restore(before)


def implementations(model: PreTrainedModel) -> list[tuple[Any, Any]]:
    """Return every config of a model with the attention implementation that it names."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs += [each for config in configs for name in config.sub_configs if (each := getattr(config, name, None))]
    return [(config, config._attn_implementation_internal) for config in {id(each): each for each in configs}.values()]


def restore(before: list[tuple[Any, Any]]) -> None:
    """Let every config name its attention implementation again."""
    for config, implementation in before:
        config._attn_implementation_internal = implementation


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
