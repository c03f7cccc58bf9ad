"""One registered attention function for every law, and attaching laws to models.

The only file that touches transformers' attention interface.

The function scales the query if its layer carries a law at `<attention module>.ssmax`, then delegates to transformers'
own `sdpa_attention_forward`; without a law it is "sdpa" bit for bit. n, the visible keys of each row, is counted from
what sdpa is about to do (its mask, or its causal rule when it has none), so padding, packing, chunked prefill and
cached decoding need no special case.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import UserError
from ..models.train_length import train_length_of
from .laws import Law, Softmax, format_law, parse_law

IMPLEMENTATION = "ssmax_eval"


def visible_keys(rows: int, keys: int, attention_mask: Tensor | None, causal: bool, device: torch.device) -> Tensor:
    """Count the keys that sdpa lets each query row see.

    attention_mask: (batch, 1 or heads, rows, keys), bool or additive, or None. Returns float32 (batch or 1, rows) >= 1.
    """
    if attention_mask is not None:
        mask = attention_mask[:, 0]
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        # rows of padding see nothing; 1 keeps their ln n finite
        return seen.sum(-1).clamp(min=1).float()
    if rows == 1 or not causal:
        return torch.full((1, rows), keys, dtype=torch.float32, device=device)
    # sdpa's causal flag aligns the first row with the first key
    return torch.arange(1, rows + 1, dtype=torch.float32, device=device)[None]


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scale query (batch, heads, rows, head_dim) by its layer's law, show q and k to a recorder, then run transformers' sdpa attention."""
    assert not any(kwargs.get(name) is not None for name in ("softcap", "s_aux")), "sdpa would drop soft-caps or sinks"
    law: Law | None = getattr(module, "ssmax", None)
    if law is not None and law.active:
        assert not kwargs.get("sliding_window"), "a law on a sliding-window layer: n would be wrong"
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        n = visible_keys(query.shape[2], key.shape[2], attention_mask, causal, query.device)
        # C(n) and the product in float32, rounded once: a rounded C(n) would be a wrong temperature
        query = (query * law(n)[..., None]).to(query.dtype)
    if (recorder := getattr(module, "recorder", None)) is not None:
        recorder(query, key, attention_mask, kwargs.get("scaling"))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


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

    def calls_interface(module: nn.Module) -> bool:
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names

    return {name: module for name, module in model.named_modules() if module in decoder and calls_interface(module)}


def layers(model: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Return the names of the attention modules that a law scales, and of those with a window, which it leaves alone."""
    config = model.config.get_text_config()
    windowed = [
        name for i, (name, module) in enumerate(attention_modules(model).items()) if is_windowed(config, module, i)
    ]
    return [name for name in attention_modules(model) if name not in windowed], windowed


def is_windowed(config: Any, module: nn.Module, index: int) -> bool:
    """Tell whether a layer sees a window (sliding or chunked) instead of the whole context."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return any(word in layer_types[getattr(module, "layer_idx", index)] for word in ("sliding", "chunked", "local"))
    if not getattr(config, "use_sliding_window", True):
        return False
    return getattr(module, "sliding_window", getattr(config, "sliding_window", None)) is not None


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise UserError for a model whose attention our function cannot run."""
    name = type(model).__name__
    if not attention_modules(model) or not model._can_set_attn_implementation():
        raise UserError(
            f"{name} does not use transformers' attention interface, so its attention cannot be exchanged; "
            "use a model that does (Llama, Qwen, Mistral, Gemma 3, GPT-2, GPT-NeoX, OPT, ...)"
        )
    if not all(getattr(module, "is_causal", True) for module in attention_modules(model).values()):
        raise UserError(f"{name} is not a causal language model: its rows see what comes after them; use a decoder")
    # up to 5.20 transformers calls soft-capped models fit for sdpa, which then drops the cap without a word
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped or not model._supports_sdpa:
        raise UserError(
            f"{name} uses logit soft-capping or attention sinks that sdpa cannot express; use a model that supports sdpa"
        )


def attach(model: PreTrainedModel, attention: str = "softmax") -> Attached:
    """Put a law (`NAME[:key=value,...]`) on every full-attention layer, replacing what was there, and return what was done.

    Learned parameters get their initial values. Raises UserError for models off the interface, unknown laws or
    options, an unknown training length, and models all of whose layers are windowed.
    """
    law_class, options = parse_law(attention)
    refuse_unsupported(model)
    config = model.config.get_text_config()
    given = options.pop("train_length", None)
    trained_at = train_length_of(model.config)
    train_length = trained_at if given is None else int(given)
    spelling = format_law(law_class, options if given is None else {**options, "train_length": given})
    modules = attention_modules(model)
    scaled, windowed = layers(model)
    if issubclass(law_class, Softmax):
        detach(model)
        model.set_attn_implementation(IMPLEMENTATION)
        return Attached(spelling, train_length)
    if not scaled:
        # a key to null is named only where the config has it
        null = ", or set the config's sliding_window to null" if getattr(config, "sliding_window", None) else ""
        raise UserError(
            f"attention law {law_class.name}: every attention layer of {type(model).__name__} is windowed, none can take "
            f"a law of n; use softmax{null}"
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
        law = law_class(int(config.num_attention_heads), train_length, **options, **shared)
        laws.append(law.to(next(modules[name].parameters()).device))
    detach(model)
    for name, law in zip(scaled, laws, strict=True):
        modules[name].ssmax = law
    # a train_length given for one law stays in its spelling: it is not the model's
    model.config.ssmax = {"attention": spelling, "train_length": trained_at}
    model.set_attn_implementation(IMPLEMENTATION)
    return Attached(spelling, train_length, scaled, windowed)


def detach(model: PreTrainedModel) -> None:
    """Take the law off every layer, leaving plain softmax."""
    for module in attention_modules(model).values():
        module._modules.pop("ssmax", None)
    if hasattr(model.config, "ssmax"):
        del model.config.ssmax


@contextmanager
def attention_law(model: PreTrainedModel, attention: str) -> Iterator[Attached]:
    """Run a block under another attention law; laws, config and attention implementation come back afterwards."""
    implementation = model.config._attn_implementation
    entry = getattr(model.config, "ssmax", None)
    laws = law_modules(model)
    try:
        yield attach(model, attention)
    finally:
        detach(model)
        for name, law in laws.items():
            model.get_submodule(name).ssmax = law
        if entry is not None:
            model.config.ssmax = entry
        model.set_attn_implementation(implementation)


@contextmanager
def native_law(model: PreTrainedModel) -> Iterator[Attached]:
    """Run a block under the law a model carries, its learned values untouched, through our attention function."""
    refuse_unsupported(model)
    implementation = model.config._attn_implementation
    entry = getattr(model.config, "ssmax", None) or {"attention": "softmax"}
    scaled, windowed = layers(model) if law_state(model) else ([], [])
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        yield Attached(entry["attention"], train_length_of(model.config), scaled, windowed)
    finally:
        model.set_attn_implementation(implementation)


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
