"""One registered attention function for every law and for recording, and attaching laws to models.

The only file that touches transformers' attention interface.

The function scales the query if its layer carries a law at `<attention module>.ssmax`, then delegates to transformers'
own `sdpa_attention_forward`; without a law it is "sdpa" bit for bit. n, the visible keys of each row, is counted from
what sdpa is about to do (its mask, or its causal rule when it has none), so padding, packing, chunked prefill and
cached decoding need no special case.

A model without a law runs on its own attention implementation: some models ask for its name and compute otherwise
under another one. Our function stands in for it where a law or a recorder needs it, and models.preflight compares the two.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import UserError
from ..models.train_length import train_length_of
from .laws import Law, Softmax, format_law, parse_law, shared_parameters

IMPLEMENTATION = "ssmax_eval"
# transformers' own; what else a config names is a user's function, and the model's native mechanism
STOCK_IMPLEMENTATIONS = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
# an additive term of this or less leaves no weight: e^-104 is 0 in float32
BLOCKED = -104.0
WINDOW_KEYS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size")


def visible(attention_mask: Tensor) -> Tensor:
    """Return which keys an attention mask lets a row see, bool: those it does not block, whatever number blocks."""
    return attention_mask if attention_mask.dtype == torch.bool else attention_mask > BLOCKED


def visible_keys(rows: int, keys: int, attention_mask: Tensor | None, causal: bool, device: torch.device) -> Tensor:
    """Count the keys that sdpa lets each query row see.

    attention_mask: (batch, 1 or heads, rows, keys), bool or additive, or None. Returns float32 (batch or 1, rows) >= 1.
    """
    if attention_mask is not None:
        seen = visible(attention_mask).any(1)  # a bias of one head may hide what the others see
        # rows of padding see nothing; 1 keeps their ln n finite
        return seen.sum(-1).clamp(min=1).float()
    if rows == 1 or not causal:
        return torch.full((1, rows), keys, dtype=torch.float32, device=device)
    # sdpa's causal flag aligns the first row with the first key
    return torch.arange(1, rows + 1, dtype=torch.float32, device=device)[None]


class Seen(NamedTuple):
    """What a layer attended with, as sdpa got it, and what came out.

    query (batch, heads, rows, head_dim) and key, value (batch, key heads, keys, head_dim), after RoPE and law; attention_mask
    (batch, 1 or heads, rows, keys), bool or additive, None for causal; position_bias, added to the scores beside it; output
    (batch, rows, heads, head_dim).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attention_mask: Tensor | None
    position_bias: Tensor | None
    scaling: float | None
    output: Tensor


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scale query (batch, heads, rows, head_dim) by its layer's law, run transformers' sdpa attention, show both to a recorder."""
    if dropped := [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]:
        raise UserError(
            f"attention with {dropped[0]}: sdpa would drop it; use a model without, or leave laws and masses out"
        )
    law: Law | None = getattr(module, "ssmax", None)
    if law is not None and law.active:
        window = kwargs.get("sliding_window")
        if window and key.shape[2] > window:
            raise UserError(
                f"attention law on a layer with a window of {window} tokens: {key.shape[2]} tokens no longer fit into it; "
                "ask for shorter ones, or swap the law in again for this length"
            )
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        n = visible_keys(query.shape[2], key.shape[2], attention_mask, causal, query.device)
        # C(n) and the product in float32, rounded once: a rounded C(n) would be a wrong temperature
        query = (query * law(n)[..., None]).to(query.dtype)
    output, none = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if (recorder := getattr(module, "recorder", None)) is not None:
        seen = Seen(query, key, value, attention_mask, kwargs.get("position_bias"), kwargs.get("scaling"), output)
        recorder(seen)
    return output, none


# both under one name: an attention function without a mask function of its name gets no mask at all
AttentionInterface.register(IMPLEMENTATION, attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@dataclass(frozen=True)
class Attached:
    """What attach did: the law's canonical spelling, L, the scaled layers, and the windowed layers left unscaled."""

    attention: str
    train_length: int | None
    scaled_layers: list[str] = field(default_factory=list)
    unscaled_layers: list[str] = field(default_factory=list)


def attention_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the text decoder's modules that call transformers' attention interface, by name, in order of depth."""
    decoder = set(model.get_decoder().modules())
    if model.get_input_embeddings() not in decoder:  # some call their head so
        decoder = set(model.modules())

    def calls_interface(module: nn.Module) -> bool:
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names

    return {name: module for name, module in model.named_modules() if module in decoder and calls_interface(module)}


def layers(model: PreTrainedModel, longest: int | None = None) -> tuple[list[str], list[str]]:
    """Return the names of the attention modules that a law scales, and of those with a window, which it leaves alone.

    longest: tokens of the longest context to come, None for as many as the model has positions; a window that holds them
    is none.
    """
    config = model.config.get_text_config()
    reach = longest or getattr(config, "max_position_embeddings", None) or math.inf
    modules = attention_modules(model)
    windowed = [name for i, (name, module) in enumerate(modules.items()) if window_of(config, module, i) < reach]
    return [name for name in modules if name not in windowed], windowed


def heads_of(config: Any, module: nn.Module) -> int:
    """Return a layer's query heads: its own number where layers differ."""
    own = [getattr(module, name, None) for name in ("num_heads", "num_attention_heads")]
    return next((heads for heads in own if isinstance(heads, int)), int(config.num_attention_heads))


def window_of(config: Any, module: nn.Module, index: int) -> float:
    """Return how many tokens a layer's window (sliding or chunked) holds: infinite without one, 0 where its size is not told."""
    layer_types = getattr(config, "layer_types", None)
    at = getattr(module, "layer_idx", None)
    if layer_types is not None:
        kind = layer_types[index if at is None else at]
        if not any(word in kind for word in ("sliding", "chunked", "local")):
            return math.inf
    elif not getattr(config, "use_sliding_window", True):
        return math.inf
    sizes = [getattr(owner, name, None) for owner in (module, config) for name in WINDOW_KEYS]
    known = [size for size in sizes if isinstance(size, int)]
    if known:
        return known[0]
    return math.inf if layer_types is None else 0


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise UserError for a model whose attention our function cannot run."""
    name = type(model).__name__
    kinds = {type(module).__name__.lower() for module in model.modules()}
    if not attention_modules(model) and not any("attention" in kind for kind in kinds):
        raise UserError(f"{name}: laws and attention masses are not applicable: it has no attention layers")
    if not attention_modules(model) or not model._can_set_attn_implementation():
        raise UserError(
            f"{name} does not use transformers' attention interface, so its attention cannot be exchanged or recorded; "
            "use a model that does (Llama, Qwen, Mistral, Gemma 3, GPT-2, GPT-NeoX, OPT, ...), or the needle and loss probes"
        )
    if not any(getattr(module, "is_causal", True) for module in attention_modules(model).values()):
        raise UserError(f"{name} is not a causal language model: its rows see what comes after them; use a decoder")
    # up to 5.20 transformers calls soft-capped models fit for sdpa, which then drops the cap without a word
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped or not model._supports_sdpa:
        raise UserError(
            f"{name} uses logit soft-capping or attention sinks that sdpa cannot express, so no law or recorder can stand "
            "in; use a model that supports sdpa, or the needle and loss probes"
        )


def native_mechanism(model: PreTrainedModel) -> str:
    """Return the name of what a model attends with by itself: its law, a user's own attention function, or softmax."""
    if (entry := getattr(model.config, "ssmax", None)) is not None:
        return str(entry["attention"])
    return mechanism_named(model.config.get_text_config()._attn_implementation)


def mechanism_named(implementation: str | None) -> str:
    """Return what an attention implementation computes: softmax if it is transformers' own, else its name."""
    name = str(implementation or "eager")
    if name not in (*STOCK_IMPLEMENTATIONS, IMPLEMENTATION):
        return name
    function = AttentionInterface._global_mapping.get(name, sdpa_attention_forward)
    own = name == IMPLEMENTATION or str(getattr(function, "__module__", "")).startswith("transformers.")
    return "softmax" if own else f"own-{name}"  # a function that somebody put in its place


@contextmanager
def our_function(model: PreTrainedModel) -> Iterator[None]:
    """Run a block with our attention function in every layer; what the layers ran on comes back afterwards."""
    refuse_unsupported(model)
    before = implementations(model)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
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


def attach(model: PreTrainedModel, attention: str = "softmax", longest: int | None = None) -> Attached:
    """Put a law (`NAME[:key=value,...]`) on every full-attention layer, replacing what was there, and return what was done.

    Learned parameters get their initial values. Softmax leaves the model on its own attention implementation. longest:
    tokens of the longest context to come: a window that holds them is none; None goes by the model's positions. Raises
    UserError for models off the interface, unknown laws or options, an unknown training length, and models all of whose
    layers are windowed.
    """
    law_class, options = parse_law(attention)
    config = model.config.get_text_config()
    given = options.pop("train_length", None)
    trained_at = train_length_of(model.config)
    train_length = trained_at if given is None else int(given)
    spelling = format_law(law_class, options if given is None else {**options, "train_length": given})
    if issubclass(law_class, Softmax):
        detach(model)
        if native_mechanism(model) != "softmax":  # its own attention is another: sdpa's softmax, by way of our function
            refuse_unsupported(model)
            vars(model)["attention_before"] = implementations(model)
            model.set_attn_implementation(IMPLEMENTATION)
        return Attached(spelling, train_length)
    refuse_unsupported(model)
    modules = attention_modules(model)
    scaled, windowed = layers(model, longest)
    if not scaled:
        key = next((name for name in WINDOW_KEYS if getattr(config, name, None) is not None), None)
        remedy = f", or set the config's {key} to null" if key else ""
        raise UserError(
            f"attention law {law_class.name}: every attention layer of {type(model).__name__} is windowed, none can take "
            f"a law of n; use softmax{remedy}"
        )
    if train_length is None or train_length < 2:
        raise UserError(
            f"attention law {law_class.name}: the training length of {type(model).__name__} is unknown; "
            f"say it: --attention {law_class.name}:train_length=TOKENS"
        )
    shares = "first" in inspect.signature(law_class).parameters
    laws: list[Law] = []
    for name in scaled:
        shared = {"first": laws[0]} if shares and laws else {}
        law = law_class(heads_of(config, modules[name]), train_length, **options, **shared)
        laws.append(law.to(computes_on(modules[name])))
    detach(model)
    put_on(model, dict(zip(scaled, laws, strict=True)))
    # a train_length given for one law stays in its spelling: it is not the model's
    model.config.ssmax = {"attention": spelling, "train_length": trained_at}
    vars(model)["attention_before"] = implementations(model)  # for detach
    model.set_attn_implementation(IMPLEMENTATION)
    return Attached(spelling, train_length, scaled, windowed)


def computes_on(module: nn.Module) -> torch.device:
    """Return the device of a layer's parameters, or the one they are brought to where accelerate has offloaded them."""
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    hooks = [getattr(part, "_hf_hook", None) for part in module.modules()]
    places = [getattr(hook, "execution_device", None) for hook in hooks]
    return torch.device(next((place for place in places if place is not None), device))


def put_on(model: PreTrainedModel, laws: Mapping[str, Law]) -> None:
    """Give layers, by name, their laws, and refuse to run a layer without its law."""
    for name, law in laws.items():
        module = model.get_submodule(name)
        module.ssmax = law
        module.register_forward_pre_hook(refuse_other_attention)
    shared_parameters(laws)


def refuse_other_attention(module: nn.Module, _: Any) -> None:
    """Raise UserError where a layer is about to run an attention function that does not know its law."""
    law: Law | None = getattr(module, "ssmax", None)
    chosen = getattr(getattr(module, "config", None), "_attn_implementation", IMPLEMENTATION)
    if law is not None and law.active and chosen != IMPLEMENTATION:
        raise UserError(
            f"attention implementation {chosen!r}: it would drop the model's law; choose {IMPLEMENTATION!r} again "
            f"(model.set_attn_implementation), or take the law off: ssmax_eval.attention_law(model, 'softmax')"
        )


def detach(model: PreTrainedModel) -> None:
    """Take the law off every layer, leaving plain softmax on the model's own attention implementation."""
    for module in attention_modules(model).values():
        module._modules.pop("ssmax", None)
        for key, hook in [*module._forward_pre_hooks.items()]:
            if hook is refuse_other_attention:
                del module._forward_pre_hooks[key]
    if hasattr(model.config, "ssmax"):
        del model.config.ssmax
    restore(vars(model).pop("attention_before", []))


@contextmanager
def attention_law(model: PreTrainedModel, attention: str, longest: int | None = None) -> Iterator[Attached]:
    """Run a block under another attention law, as attach; laws, config and attention implementation come back afterwards."""
    before, own = implementations(model), vars(model).get("attention_before")
    entry = getattr(model.config, "ssmax", None)
    laws = law_modules(model)
    try:
        yield attach(model, attention, longest)
    finally:
        detach(model)
        put_on(model, laws)
        if entry is not None:
            model.config.ssmax = entry
        if own is not None:
            vars(model)["attention_before"] = own
        restore(before)


@contextmanager
def native_law(model: PreTrainedModel) -> Iterator[Attached]:
    """Run a block under what a model attends with by itself: the law it carries, its learned values untouched, or its
    own attention implementation.
    """
    name, trained_at = native_mechanism(model), train_length_of(model.config)
    laws = law_modules(model)
    if not laws:
        yield Attached(name, trained_at)
        return
    unscaled = [each for each in attention_modules(model) if each not in laws]
    with our_function(model):
        yield Attached(name, trained_at, list(laws), unscaled)


def law_state(model: PreTrainedModel) -> dict[str, dict[str, list[float]]]:
    """Return the learned values of every layer's law: {module name: {parameter: values}}, tables of length L left out."""
    return {
        name: {key: p.detach().float().tolist() for key, p in law.named_parameters() if len(p) == law.heads}
        for name, law in law_modules(model).items()
    }


def law_modules(model: PreTrainedModel) -> dict[str, Law]:
    """Return the laws a model carries, by the name of their attention module."""
    found = {name: getattr(module, "ssmax", None) for name, module in attention_modules(model).items()}
    return {name: law for name, law in found.items() if law is not None}
