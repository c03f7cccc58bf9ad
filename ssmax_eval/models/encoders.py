"""Encoders: models that fill masks in a text that they see all of, and do not continue it."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import UserError
from ..mechanisms.layers import attends_both_ways, attention_modules

HEAD = "ForMaskedLM"  # how the classes are called that fill masks


def is_encoder(model: PreTrainedModel) -> bool:
    """Tell whether a model fills masks: its class has that head, and none of its attention is causal."""
    has_head = any(base.__name__.endswith(HEAD) for base in type(model).__mro__)
    return has_head and (attends_both_ways(model) or not attention_modules(model))


def opens_as_encoder(config: PreTrainedConfig) -> bool:
    """Tell whether a config is of a model that fills masks: it names such a class, or its type has no other language model."""
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        return False
    named: Any = getattr(config, "architectures", None) or [""]
    return str(named[0]).endswith(HEAD) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def refuse_without_mask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for an encoder whose tokenizer has no mask token to ask it with."""
    if tokenizer.mask_token_id is None:
        raise UserError(
            f"{type(model).__name__} is an encoder, not a causal (decoder-only) language model, and its tokenizer has no mask "
            "token to ask it with; give one that has"
        )
