"""A recipe's model: plain Llama, or Qwen3 for QK-norm, of transformers, initialised the same for every mechanism."""

import math

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ..errors import UserError
from ..mechanisms.attach import own_bias
from ..mechanisms.spelling import Attention
from ..models.config import first_line
from ..position.learned import position_end
from ..position.rope import rotary_modules, stands_still
from .recipes import Recipe

# share of a head's frequencies that turn: rope all, p-rope the fast half, nope none; a bias stands in for all
ROTARY_SHARE = {"rope": 1.0, "p-rope": 0.5, "nope": 0.0}


def bias_of(recipe: Recipe) -> str | None:
    """Return the name of the bias that is a recipe's position; None for one of RoPE's kinds."""
    return None if recipe.position in ROTARY_SHARE else recipe.position


def position_of(model: PreTrainedModel) -> str:
    """Return what tells a model where its tokens are, as a recipe's position names it; `learned` for positions that are weights."""
    if position_end(model) is not None:
        return "learned"
    turns = any(not stands_still(rotary) for rotary in rotary_modules(model).values())
    return own_bias(model) or ("rope" if turns else "nope")


def check_position(attention: str, position: str) -> None:
    """Raise UserError for a mechanism that is trained with another position alone."""
    mechanism = Attention.of(attention).mechanism
    if mechanism.position not in (None, position):
        raise UserError(
            f"attention {mechanism.name}: it is trained with position {mechanism.position}, not {position}; add --set "
            f"position={mechanism.position}, without --start or from a model that has it"
        )


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a float32 model on the CPU with weights drawn from the seed alone.

    Normal weights of std init_std, those that write to the residual stream divided by sqrt(2 layers) (GPT-2's rule).
    """
    config_class, model_class = (Qwen3Config, Qwen3ForCausalLM) if recipe.qk_norm else (LlamaConfig, LlamaForCausalLM)
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
        )
        model: PreTrainedModel = model_class(config)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"recipe {recipe.name}: its model cannot be built ({first_line(error)})") from error
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
