"""By which name a model's layers find their attention function, and how ours stands in for it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..errors import UserError
from .layers import attention_modules

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
    """Return the name of what a model attends with by itself: its mechanism, a user's own attention function, or softmax.

    A layer can have a function of its own; several are all named.
    """
    if (entry := getattr(model.config, "ssmax", None)) is not None:
        return str(entry["attention"])
    configs = [model.config.get_text_config(), *configs_of(attention_modules(model).values())]
    named = [mechanism_named(config._attn_implementation) for config in configs]
    return "+".join(dict.fromkeys(name for name in named if name != "softmax")) or "softmax"


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
        attend_with(model, name)
        yield
    finally:
        restore(before)


def attend_with(model: PreTrainedModel, name: str) -> None:
    """Let every attention layer of a model call the attention function of a name.

    transformers tells the configs of models alone. A layer that was copied, as one is that a model is made deeper by, has its own.
    """
    model.set_attn_implementation(name)
    for config in configs_of(attention_modules(model).values()):
        config._attn_implementation_internal = name


def configs_of(modules: Iterable[nn.Module]) -> list[Any]:
    """Return the configs that modules have."""
    return [module.config for module in modules if isinstance(getattr(module, "config", None), PreTrainedConfig)]


def implementations(model: PreTrainedModel) -> list[tuple[Any, Any]]:
    """Return every config of a model with the attention implementation that it names."""
    configs = configs_of(model.modules())
    configs += [each for config in configs for name in config.sub_configs if (each := getattr(config, name, None))]
    return [(config, config._attn_implementation_internal) for config in {id(each): each for each in configs}.values()]


def restore(before: list[tuple[Any, Any]]) -> None:
    """Let every config name its attention implementation again."""
    for config, implementation in before:
        config._attn_implementation_internal = implementation
