"""A recipe's model: blocks of transformers (Llama, Qwen3 for QK-norm, GPT-2, GPT-NeoX, EuroBERT).

Initialised the same for every mechanism.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EuroBertConfig,
    EuroBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from ..errors import UserError, first_line
from ..mechanisms.attach import own_bias
from ..mechanisms.spelling import Attention
from ..position.bias import NoPosition
from ..position.learned import position_end, take_table_out
from ..position.rotary import rotary_modules, stands_still
from .recipes import BLOCKS, Recipe

# share of a head's frequencies that turn: rope all, p-rope the fast half, nope none; a bias stands in for all
ROTARY_SHARE = {"rope": 1.0, "p-rope": 0.5, "nope": 0.0}
# layers that write to the residual stream, by the end of their names
WRITERS = ("o_proj", "down_proj", "c_proj", "attention.dense", "dense_4h_to_h")
Made = tuple[PreTrainedConfig, type[PreTrainedModel]]


def bias_of(recipe: Recipe) -> str | None:
    """Return what a recipe's model carries as its position beside the blocks' own: a bias, or `nope` in place of GPT-2's table."""
    own = BLOCKS[recipe.blocks]
    if recipe.position in own and (recipe.position != NoPosition.name or "rope" in own):
        return None
    return recipe.position


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

    Normal weights of std init_std, those that write to the residual stream divided by sqrt(2 layers) (GPT-2's rule); biases 0.
    """
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "max_position_embeddings": recipe.train_length,
        "tie_word_embeddings": True,
        "initializer_range": recipe.init_std,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **({"mask_token_id": tokenizer.mask_token_id} if recipe.is_encoder else {}),
    }
    try:
        config, model_class = {"llama": llama, "gpt2": gpt2, "gpt-neox": gpt_neox, "eurobert": eurobert}[recipe.blocks](
            recipe, shared
        )
        model: PreTrainedModel = model_class(config)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"recipe {recipe.name}: its model cannot be built ({first_line(error)})") from error
    if not recipe.is_encoder:
        model.generation_config.do_sample = False
    if recipe.position != "learned":
        take_table_out(model)
    draw(model, recipe, seed)
    return model


def llama(recipe: Recipe, shared: dict[str, Any]) -> Made:
    """Return config and class of Llama's blocks, or of Qwen3's, which are Llama's with QK-norm."""
    config_class, model_class = (Qwen3Config, Qwen3ForCausalLM) if recipe.qk_norm else (LlamaConfig, LlamaForCausalLM)
    return config_class(**shared, **like_llama(recipe)), model_class


def eurobert(recipe: Recipe, shared: dict[str, Any]) -> Made:
    """Return config and class of EuroBERT's blocks, of transformers' encoders the one that is Llama whose rows see everything.

    The same layers and initialisation, RoPE, p-RoPE and NoPE by the same parameters, so that positions do not end. Its attention
    gets biases, as BERT's has, so that a masked token can look at a place in the first layer, whatever word is there.
    """
    return EuroBertConfig(**shared, **like_llama(recipe), attention_bias=True), EuroBertForMaskedLM


def like_llama(recipe: Recipe) -> dict[str, Any]:
    """Return what configs of Llama's kin take of a recipe besides."""
    return {
        "intermediate_size": recipe.feed_forward,
        "num_key_value_heads": recipe.heads,
        "head_dim": recipe.hidden // recipe.heads,
        "rope_parameters": rope_of(recipe),
    }


def gpt2(recipe: Recipe, shared: dict[str, Any]) -> Made:
    """Return config and class of GPT-2's blocks, without dropout, as the others are."""
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2Config(**shared, n_inner=recipe.feed_forward, **dropout), GPT2LMHeadModel


def gpt_neox(recipe: Recipe, shared: dict[str, Any]) -> Made:
    """Return config and class of GPT-NeoX's blocks: attention and feed-forward side by side. RoPE turns what the recipe says."""
    rope = {"partial_rotary_factor": 1.0, **rope_of(recipe)}  # theirs is a quarter
    return GPTNeoXConfig(**shared, intermediate_size=recipe.feed_forward, rope_parameters=rope), GPTNeoXForCausalLM


def rope_of(recipe: Recipe) -> dict[str, Any]:
    """Return the RoPE parameters of a recipe's position."""
    rope = {"rope_type": "default", "rope_theta": recipe.rope_theta}
    if recipe.position != "rope":
        rope |= {"rope_type": "proportional", "partial_rotary_factor": ROTARY_SHARE.get(recipe.position, 0.0)}
    return rope


@torch.no_grad()
def draw(model: PreTrainedModel, recipe: Recipe, seed: int) -> None:
    """Draw a model's weights from a seed; output embeddings are the input's."""
    generator = torch.Generator().manual_seed(seed)
    residual = 1 / math.sqrt(2 * recipe.layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D) and module is not model.get_output_embeddings():
            std = recipe.init_std * (residual if name.endswith(WRITERS) else 1.0)
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                bias.zero_()
    model.tie_weights()
