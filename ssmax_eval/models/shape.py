"""What a model's shape alone tells, weights or none: where its positions end, and the operations of reading so many tokens."""

import copy
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import UserError
from ..mechanisms.attach import own_position
from ..mechanisms.layers import attends_both_ways, attention_modules
from ..position.learned import take_table_out
from .causal import refuse_without_words
from .checkpoint import PREFIX
from .encoders import opens_as_encoder
from .headers import refuse_more_layers, shapes_of
from .sources import ModelSource

AT_MOST = 2  # times the numbers in its files that a model may need


@lru_cache(maxsize=8)
def blank(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedModel | None:
    """Return a model without its weights and its mechanism; None where its config builds none, which load_model says better."""
    try:
        if not source.is_gguf:
            refuse_more_layers(source)
        return without_weights(config_of(source, trust_remote_code), trust_remote_code)
    except Exception:  # configs and code of other people raise anything
        return None


def without_weights(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the model of a config on the meta device, where tensors have shapes and no memory."""
    with torch.device("meta"):
        # eager: no package is needed for a model that computes nothing
        model: PreTrainedModel = (
            AutoModelForMaskedLM if opens_as_encoder(config) else AutoModelForCausalLM
        ).from_config(config, trust_remote_code=trust_remote_code, attn_implementation="eager")
    refuse_without_words(model)
    if own_position(model) is not None:
        take_table_out(model)
    return model


def refuse_other_shapes(source: ModelSource, config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """Raise UserError for weight files whose tensors are not those of the model that a config describes.

    transformers takes the memory first, and compares then: a config that lost its sizes would cost its type's default, 30 GB.
    A name that only one of the two has is no sign, as transformers renames some while it loads. Quantized weights have other
    shapes than their model's.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    held = shapes_of(source)
    carries = str(config.model_type).startswith(PREFIX)
    try:
        # a copy: building one leaves its attention implementation in its config
        plain = config_of(source, trust_remote_code) if carries else copy.deepcopy(config)
        model = without_weights(plain, trust_remote_code)
    except Exception:  # configs and code of other people raise anything, which loading them says better
        return
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if other := sorted(name for name in needed.keys() & held.keys() if needed[name] != held[name]):
        raise UserError(
            f"model {source.reference!r}: cannot be loaded (the shapes of its weights are not those of its config: "
            f"{other[0]} is {list(held[other[0]])}, and {list(needed[other[0]])} by its config)"
        )
    has, needs = sum(map(prod, held.values())), sum(each.numel() for each in model.parameters())
    if needs > AT_MOST * has:
        raise UserError(
            f"model {source.reference!r}: its config describes {needs:,} parameters, and its files hold {has:,}; "
            "they are not of one model"
        )


def config_of(source: ModelSource, trust_remote_code: bool) -> PreTrainedConfig:
    """Return a model's config, of its plain type where it carries a mechanism."""
    if source.is_gguf:
        return AutoConfig.from_pretrained(source.path.parent, gguf_file=source.path.name, local_files_only=True)
    config = source.config()
    kind = str(config["model_type"])
    if kind.startswith(PREFIX):
        base = kind.removeprefix(PREFIX)
        return CONFIG_MAPPING[base].from_dict({**config, "model_type": base})
    return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code, local_files_only=True)


@dataclass(frozen=True)
class Work:
    """What a forward multiplies. weights: of the matrices that every token passes; head: of the one that makes logits;
    attention: for each layer the width (heads x head_dim, keys' and values' mean) and the window, in tokens, None where it has none.
    causal: whether a row sees only the keys at or before it.
    """

    weights: float
    head: int
    attention: tuple[tuple[float, int | None], ...]
    causal: bool = True

    def operations(self, length: int, rows: int = 0) -> float:
        """Return the floating-point operations of reading `length` tokens and making `rows` rows of logits.

        2 for each weight and token; 4 for each pair of a row and a key that it sees, and each of attention's channels
        (q.k and weights.v). A flash kernel and sdpa's do as many, eager attention twice as many.
        """
        pairs = sum(width * visible_pairs(length, window) for width, window in self.attention)
        both_ways = 1.0 if self.causal else 2 * length / (length + 1)
        return 2 * self.weights * length + 2 * self.head * rows + 4 * pairs * both_ways


def visible_pairs(length: int, window: int | None) -> float:
    """Return how many pairs of a row and a key at or before it there are, in a window of so many keys."""
    short = length if window is None else min(length, window)
    return short * (short + 1) / 2 + (length - short) * short


def work_of(model: PreTrainedModel) -> Work:
    """Return what a model's forward multiplies; of a mixture of experts, those that a token is sent to.

    An estimate: scans and convolutions are left out.
    """
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    head = model.get_output_embeddings()
    matrix = getattr(head, "weight", None)  # a quantized head has a method of that name, and what wraps one has none
    apart = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}  # looked up, not multiplied
    apart |= {id(each) for each in head.parameters()} if head is not None else set()
    weights = 0.0
    for parameter in model.get_decoder().parameters():
        if parameter.ndim >= 2 and id(parameter) not in apart:
            # experts lie in one tensor (experts, in, out)
            share = min(1, chosen / len(parameter)) if isinstance(chosen, int) and parameter.ndim == 3 else 1
            weights += parameter.numel() * share
    made = (
        matrix.numel()
        if isinstance(matrix, Tensor)
        else getattr(config, "vocab_size", 0) * getattr(config, "hidden_size", 0)
    )
    return Work(weights, 0 if head is None else made, attention_of(model, config), not attends_both_ways(model))


def attention_of(model: PreTrainedModel, config: Any) -> tuple[tuple[float, int | None], ...]:
    """Return width and window of each attention layer; from the config where layers do not tell what they are."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return ()
    try:
        usual = getattr(config, "head_dim", None) or config.hidden_size // heads
    except Exception:  # a config whose layers differ refuses to give one number for all
        usual = model.get_input_embeddings().weight.shape[-1] // heads
    found = []
    for module in attention_modules(model).values():
        keys = getattr(module, "qk_head_dim", None) or getattr(module, "head_dim", None) or usual
        values = getattr(module, "v_head_dim", None) or keys
        window = getattr(module, "sliding_window", None)
        found.append((heads * (keys + values) / 2, window if isinstance(window, int) else None))
    return tuple(found) or ((float(heads * usual), None),) * config.num_hidden_layers


def memory_of(model: PreTrainedModel, tokens: int, size: int) -> tuple[int, int]:
    """Return the bytes of a model's weights, and of what one layer has in memory at once while it reads `tokens`, the least of it.

    size: bytes of a number. A layer: the residual stream, its norm, q, k, v and what attention gives, and two of its widest.
    """
    apart = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.get_decoder().parameters() if p.ndim == 2 and id(p) not in apart]
    hidden = model.get_input_embeddings().weight.shape[-1]
    widest = max((max(matrix.shape) for matrix in matrices), default=hidden)
    return size * sum(parameter.numel() for parameter in model.parameters()), size * tokens * (6 * hidden + 2 * widest)
