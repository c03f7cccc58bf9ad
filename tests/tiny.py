"""Tiny random models of many architectures, and a float64 attention written without the product's code."""

import math
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import sdpa_mask

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": None},
    "GPTNeoX": {
        "hidden_size": 128,
        "initializer_range": 0.1,
    },  # a quarter of each head rotates: wide enough for several frequencies
    "GPT2": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Olmo2": {},
    "Gemma3Text": {
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Phi3": {},
    "Granite": {},
    "Starcoder2": {},
    "DeepseekV3": {
        **MOE,
        **MLA,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "Qwen3Moe": {**MOE, "head_dim": 8, "num_experts": 4},
}


def build(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a tiny random model in eval mode, the same for the same arguments."""
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **ARCHITECTURES.get(name, {}), **changes})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def needed_by(mechanism: str) -> dict[str, Any]:
    """Return the changes of a tiny model without which a mechanism, by its name or spelling, is refused."""
    return {"num_hidden_layers": 4} if mechanism.partition(":")[0] == "mswa" else {}


def tokens(rows: int = 2, length: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


def float64_attention(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):  # type: ignore[no-untyped-def]
    """softmax(C(n) q.k scaling) v in float64; C is `module.reference_scale`: n -> (heads,), the mask is built here."""
    groups = query.shape[1] // key.shape[1]
    q = query.double()
    k, v = (t.double().repeat_interleave(groups, dim=1) for t in (key, value))
    rows, keys = q.shape[2], k.shape[2]
    row = torch.arange(keys - rows, keys)[:, None]
    column = torch.arange(keys)[None]
    seen = column <= row
    if sliding_window:
        seen &= column > row - sliding_window
    seen = seen[None, None].expand(q.shape[0], 1, rows, keys)
    if attention_mask is not None:
        seen = seen & attention_mask
    if (scale := getattr(module, "reference_scale", None)) is not None:
        n = seen.sum(-1)[:, 0]
        factor = torch.tensor([[scale(int(x)) for x in line] for line in n], dtype=torch.float64)
        q = q * factor.transpose(1, 2)[..., None]
    scores = (q @ k.transpose(-1, -2)) * scaling
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num()
    return (weights @ v).transpose(1, 2).to(query.dtype), weights


AttentionInterface.register("float64_reference", float64_attention)
AttentionMaskInterface.register("float64_reference", sdpa_mask)
