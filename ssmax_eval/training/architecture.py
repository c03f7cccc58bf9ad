"""A recipe's model: plain Llama, Qwen3 for QK-norm, or EuroBERT, of transformers, initialised the same for every mechanism."""

import math
from typing import Any

import torch
from torch import nn
from transformers import (
    EuroBertConfig,
    EuroBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ..errors import UserError
from ..models.config import first_line
from .recipes import Recipe

# share of a head's frequencies that turn: rope all, p-rope the fast half, nope none; a bias stands in for all
ROTARY_SHARE = {"rope": 1.0, "p-rope": 0.5, "nope": 0.0}


def bias_of(recipe: Recipe) -> str | None:
    """Return the name of the bias that is a recipe's position; None for one of RoPE's kinds."""
    return None if recipe.position in ROTARY_SHARE else recipe.position


def classes_of(recipe: Recipe) -> tuple[Any, Any]:
    """Return the config and model class of a recipe's blocks.

    Of transformers' encoders EuroBERT is Llama whose rows see everything: the same layers and initialisation, RoPE, p-RoPE and
    NoPE by the same parameters, so that positions do not end. Its attention gets biases, as BERT's has, so that a masked token
    can look at a place in the first layer, whatever word is there.
    """
    if recipe.is_encoder:
        return EuroBertConfig, EuroBertForMaskedLM
    return (Qwen3Config, Qwen3ForCausalLM) if recipe.qk_norm else (LlamaConfig, LlamaForCausalLM)


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a float32 model on the CPU with weights drawn from the seed alone.

    Normal weights of std init_std, those that write to the residual stream divided by sqrt(2 layers) (GPT-2's rule).
    """
    config_class, model_class = classes_of(recipe)
    rope = {"rope_type": "default", "rope_theta": recipe.rope_theta}
    if recipe.position != "rope":
        rope |= {"rope_type": "proportional", "partial_rotary_factor": ROTARY_SHARE.get(recipe.position, 0.0)}
    try:
        config = config_class(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            head_dim=recipe.hidden // recipe.heads,
            max_position_embeddings=recipe.train_length,
            rope_parameters=rope,
            tie_word_embeddings=True,
            initializer_range=recipe.init_std,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **({"mask_token_id": tokenizer.mask_token_id, "attention_bias": True} if recipe.is_encoder else {}),
        )
        model: PreTrainedModel = model_class(config)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"recipe {recipe.name}: its model cannot be built ({first_line(error)})") from error
    if not recipe.is_encoder:
        model.generation_config.do_sample = False
    generator = torch.Generator().manual_seed(seed)
    residual = 1 / math.sqrt(2 * recipe.layers)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not name.endswith("lm_head"):
                std = recipe.init_std * (residual if name.endswith(("o_proj", "down_proj")) else 1.0)
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
    model.tie_weights()
    return model
