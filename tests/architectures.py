"""Every causal type that transformers knows, built small from its config's own defaults: no entry per model where none is needed.

`build_small(model_type)` takes the defaults of the type's config class, shrinks every size that it knows by its name, cuts
what is listed by layer to a few layers of every kind, and gives the model weights that make all of it matter.
"""

import dataclasses
import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 1024
WINDOW = 16  # tokens
INDEXED = 32  # keys that a sparse indexer keeps
POSITIONS = 512
HIDDEN = 64
HEADS = 4
FEWEST_LAYERS, MOST_LAYERS = 4, 8
LARGEST = 15_000_000  # parameters: 60 MB in float32

MODEL_TYPES: list[str] = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# what a size is called, and what it becomes: the first that matches the whole name
SIZES: list[tuple[str, int]] = [
    (r"(decoder_|text_)?vocab_size(_per_layer_input)?|unpadded_vocab_size", VOCABULARY),
    (r"(audio|shape|pronunciation|encoder_hash_byte_group|ngram)_vocab(_size)?(_base)?|codebook_size", 64),
    (r"pad_token_id|eos_token_id", 1),
    (r"bos_token_id|decoder_start_token_id", 0),
    (r"(?:forced|suppress).*token.*", -1),
    (r"(image|video|audio|vision|bo|eo|cls|sep|mask|eod|bot|eot).*_(token_id|token_index)", VOCABULARY - 2),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length|model_max_length",
        POSITIONS,
    ),
    (
        r"sliding_window(_size)?|window_size|attention_window_size|attention_chunk_size|local_attention(_window_len)?",
        WINDOW,
    ),
    (r"index_topk", INDEXED),
    (
        r"index(er)?_n_heads",
        16,
    ),  # fewer leave scores that are exactly 0 together, and which of them are kept is then open
    (r"index_block_size", 8),
    (r"index_topk_blocks", 4),
    (r".*(lora_rank|laurel_rank|norm_rank|lowrank)", 16),
    (r"n_group|num_expert_group|topk_group|o_groups|mamba_n_groups|n_groups", 1),
    (r"(n_routed|num|num_local|moe_num)_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k", 2),
    (r"(n|num|moe_num)_shared_experts", 1),
    (
        r"attention_hidden_size|hidden_size_global|lru_width|word_embed_proj_dim|(input_|output_)?embedding_size|ple_embed_dim",
        HIDDEN,
    ),
    (r"hidden_size|d_model|n_embd|(pronunciation|shape)_embed_dim|backbone_hidden_size|emb_dim", HIDDEN),
    (r"hidden_size_per_layer_input|d_rel", 8),
    (
        r".*(intermediate_size|ffn_dim|ffn_hidden_size|ff_dim|dim_ff|dff|d_inner|feed_forward_size|intermediate_size_mlp)",
        96,
    ),
    (r".*(num_key_value_heads|kv_n_heads|num_kv_heads|num_query_groups)", 2),
    (r"linear_num_key_heads", 2),
    (r"(mamba_n_heads|n_mamba_heads|mamba_num_heads)", HEADS),
    (r".*(num_attention_heads|n_heads?|num_heads|attention_heads|linear_num_value_heads|linear_num_heads)", HEADS),
    (r".*head_dim|kv_channels|dim_head|.*_d_head|attention_head_size|attention_head_dim", HIDDEN // HEADS),
    (r"rotary_dim", 8),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r".*time_step_rank|mamba_dt_rank", 8),
    (r"mamba_d_ssm", 2 * HIDDEN),
    (r".*chunk_size|rel_extent", 32),
    (r"full_attention_interval|.*_(layer_)?period|num_layers_per_stack", 2),
    (r"attn_layer_offset", 1),
]
DERIVED = ("head_dim", "num_key_value_heads")
LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_blocks",
    "num_decoder_layers",
    "encoder_layers",
    "num_encoder_layers",
)

# what the generic way cannot know: fields of a type's config that hang on one another
SHARED_KV = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
HYBRID = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
QSA = {
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": INDEXED,
    "indexer_compress_ratio": 4,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {**ROPE, "mrope_section": [4, 2, 2]},
            "full_attention": {**ROPE, "mrope_section": [4, 2, 2]},
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
        "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "falcon_h1": {"mamba_d_head": 16},
    "gemma3n_text": {**SHARED_KV, "intermediate_size": 96},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gemma4": {"text_config": SHARED_KV},
    "gemma4_text": SHARED_KV,
    "gemma4_unified": {"text_config": SHARED_KV},
    "gemma4_unified_text": SHARED_KV,
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": HYBRID,
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": 2},
    "jamba": {"num_hidden_layers": 4, "use_mamba_kernels": False},
    "laguna": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_attention_heads_per_layer": [HEADS, 2 * HEADS] * 2,
    },
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "minimax_m3_vl_text": {"num_hidden_layers": 4, "layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "qwen4_exp": {"text_config": QSA},
    "qwen4_exp_text": QSA,
    "reformer": {
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 48],
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
    },
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"qk_dim_factor": 1.0},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "hybrid"] * 3, "num_mem_blocks": 2},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 2 * HIDDEN // HEADS,
    },
}


# the same types under switches that users' configs have on
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert(encoder)": ("bert", {"is_decoder": False}),
    "deepseek_v4(wide)": ("deepseek_v4", {"num_hidden_layers": 4, "head_dim": 64}),
    "deepseek_v4(windows)": (
        "deepseek_v4",
        {
            "num_hidden_layers": 4,
            "head_dim": 64,
            "layer_types": [
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
                "sliding_attention",
            ],
        },
    ),
    "falcon(alibi)": ("falcon", {"alibi": True}),
    "deepseek_v32(eager)": ("deepseek_v32", {"attn_implementation": "eager"}),
    "gemma2(eager)": ("gemma2", {"attn_implementation": "eager"}),
    "gemma3_text(bidirectional)": ("gemma3_text", {"use_bidirectional_attention": True}),
    "gemma4_text(unshared)": ("gemma4_text", {**SHARED_KV, "num_kv_shared_layers": 0}),
    "llama(dynamic)": (
        "llama",
        {"max_position_embeddings": 64, "rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}},
    ),
    "llama(eager)": ("llama", {"attn_implementation": "eager"}),
    "llama(tuple)": ("llama", {"return_dict": False}),
    "llama(yarn)": (
        "llama",
        {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}},
    ),
    "phi3(longrope)": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 64},
        },
    ),
    "phimoe(longrope)": (
        "phimoe",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                **LONGROPE,
                "original_max_position_embeddings": 64,
                "factor": 4.0,
                "short_mscale": 1.2,
                "long_mscale": 1.3,
            },
        },
    ),
    "mistral(whole)": ("mistral", {"sliding_window": None}),
    "qwen2(windows)": (
        "qwen2",
        {
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "phi3(wide)": ("phi3", {"sliding_window": 262144}),
}


class NotBuildable(Exception):
    """This type cannot be built small here; the text says why."""


def build_small(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Return a small random model of a type or a variant, float32 on the CPU in eval mode, the same for the same arguments.

    Raises NotBuildable with the reason.
    """
    model_type, changes = VARIANTS.get(model_type, (model_type, {}))
    changes = {**OVERRIDES.get(model_type, {}), **changes}
    implementation = changes.pop("attn_implementation", None)
    as_tuple = changes.pop("return_dict", True) is False
    try:
        config = small_config(CONFIG_MAPPING[model_type], changes)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            raise NotBuildable(f"{size:,} parameters: a size is not shrunk")
        torch.manual_seed(seed)
        options = {"attn_implementation": implementation} if implementation else {}
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options).eval()
        enliven(model, seed)
    except NotBuildable:
        raise
    except Exception as error:
        raise NotBuildable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    if as_tuple:  # many a forward of transformers' own fails under it
        model.config.return_dict = False
    return model


def small_config(config_class: type[PreTrainedConfig], changes: dict[str, Any]) -> PreTrainedConfig:
    """Return a config of a class with every size shrunk but those in `changes` (nested by sub-config)."""
    try:
        default = config_class(**changes)
    except Exception:  # small values beside large ones
        default = config_class()
    return config_class(**shrunk(default, changes))


def shrunk(default: PreTrainedConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that are sizes or are listed by layer, small, and `changes` as they are."""
    values = {field.name: value_of(default, field.name) for field in dataclasses.fields(default)}
    parts = {name: value for name, value in values.items() if isinstance(value, PreTrainedConfig)}
    small: dict[str, Any] = {name: shrunk(value, changes.get(name) or {}) for name, value in parts.items()}
    small |= sizes(values)
    small |= {name: 0.2 for name in ("initializer_range", "init_std") if name in values}
    small |= {name: 2.0 for name in ("attn_logit_softcapping",) if values.get(name)}
    small |= {name: True for name in ("is_decoder",) if name in values}
    if count := next((values[name] for name in LAYERS if isinstance(values.get(name), int)), None):
        given = any(name in changes for name in LAYERS)
        small |= fewer_layers(default, values, count, cut=not given)
    return small | {name: value for name, value in changes.items() if name not in parts}


def value_of(config: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # a field that layers have each their own of
        return vars(config).get(name)


def sizes(values: dict[str, Any]) -> dict[str, Any]:
    """Return those of a config's values that are sizes, small and such that they go together."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}
    small = {name: size for name, value in numbers.items() if (size := size_of(name, value)) is not None}
    if "kv_lora_rank" in values:  # every head has keys of its own
        small |= {name: HEADS for name in ("num_key_value_heads",) if name in values}
    if "expand" in values or "mamba_expand" in values:  # heads * head_dim is the expanded width
        small |= {name: 2 * HEADS for name in ("num_heads", "mamba_n_heads", "mamba_num_heads") if name in values}
    if small.get("qk_nope_head_dim"):
        small |= {name: 2 * HIDDEN // HEADS for name in ("qk_head_dim",) if name in values}
    if small.get("num_experts_per_tok") and values.get("n_routed_experts", 0) is None:
        small |= {"n_routed_experts": 4, "n_shared_experts": 1}
    # what is None is derived from other fields in some classes, and in others it is an error later
    small |= {name: size_of(name, 2**20) for name in DERIVED if name in values and values[name] is None}
    return small


def fewer_layers(default: PreTrainedConfig, values: dict[str, Any], count: int, cut: bool) -> dict[str, Any]:
    """Return the fields that count or list layers, for a few layers of every kind, all of them if not `cut`."""
    listed = {n: v for n, v in values.items() if isinstance(v, list | tuple) and len(v) == count > 1}
    overrides = default.to_dict().get("per_layer_config") or {}
    by_layer = {int(layer): changed for layer, changed in overrides.items()}
    kinds = [*listed.values(), [str(by_layer.get(i)) for i in range(count)]]
    kept = layers_to_keep(count, kinds) if cut else list(range(count))
    fewer: dict[str, Any] = {name: [value[i] for i in kept] for name, value in listed.items()}
    fewer |= {name: len(kept) for name in LAYERS if isinstance(values.get(name), int)}
    if by_layer:
        fewer["per_layer_config"] = {
            new: sizes(by_layer[old]) | wider(by_layer[old], vars(default))
            for new, old in enumerate(kept)
            if old in by_layer
        }
    return fewer


def wider(changed: dict[str, Any], general: dict[str, Any]) -> dict[str, Any]:
    """Return the head_dim of a layer of its own, wider than the others' where it was."""
    if "qk_nope_head_dim" in changed or changed.get("head_dim", 0) > general.get("head_dim", 0):
        return {"head_dim": 2 * HIDDEN // HEADS}
    return {}


def size_of(name: str, value: int) -> int | None:
    """Return what a size becomes, None for what is no size; never more than it is, and what is switched off stays so."""
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            if size < 0:
                return None
            return size if "token" in name or "vocab" in name else min(size, value)
    return None


def layers_to_keep(count: int, lists: list[Any]) -> list[int]:
    """Return the layers to keep of `count`: the first of every kind that any list tells apart, and the last."""
    kept = {0, count - 1}
    for each in lists:
        kept |= {each.index(kind) for kind in dict.fromkeys(map(hashable, each))} if each else set()
    for index in range(count):
        if len(kept) >= min(FEWEST_LAYERS, count):
            break
        kept.add(index)
    return sorted(kept)[:MOST_LAYERS]


def hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@torch.no_grad()
def enliven(model: PreTrainedModel, seed: int) -> None:
    """Give every parameter that starts out constant, or not at all, values that make it matter; and logits some spread."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if not torch.isfinite(parameter).all() or parameter.abs().max() > 100:
            parameter.copy_(0.2 * noise)
        elif parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.add_(0.1 * noise)
        elif parameter.ndim > 1 and parameter.std() < 0.1:
            parameter.mul_(0.2 / parameter.std())
    head = model.get_output_embeddings()
    ids = torch.randint(3, VOCABULARY - 8, (1, 40), generator=generator)
    if head is not None and (spread := float(model(input_ids=ids, return_dict=True).logits.std(-1).mean())) < 1:
        head.weight.mul_(1.5 / spread)
