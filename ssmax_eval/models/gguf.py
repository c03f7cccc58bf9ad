"""Load a .gguf file with all that its metadata says: what neither transformers nor this file applies is an error naming its key.

transformers reads some keys of each architecture and drops the rest without a word, RoPE scaling among them. The meaning of
keys and of RoPE tensors is llama.cpp's, which writes these files.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..errors import UserError, first_line
from ..position.rotary import frequencies, kind_of, rotary_modules
from .gguf_rope import ROPE_TENSORS, SAYS_NOTHING, apply_rope
from .opened import ADAPTER_CONFIG
from .sources import ModelSource

# metadata key (after `<architecture>.`) -> config attribute, for what transformers drops for some architectures
ATTRIBUTES = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.scale": "attention_multiplier",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "logit_scale": "logit_scale",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "use_parallel_residual": "use_parallel_residual",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
}
# shapes, which the tensors' own shapes confirm, and notes; all others that are not applied are errors
HARMLESS = {
    "context_length", "vocab_size", "block_count", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "tensor_data_layout", "rope.scaling.finetuned",
}  # fmt: skip
AS_USUAL = {"attention.causal": True, "expert_gating_func": 1}  # 1: softmax, as all of these have that do not say


def load_gguf(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """Load a .gguf file, its quantised weights expanded to dtype. Raises UserError for what cannot be applied of it."""
    folder, name = source.path.parent, source.path.name
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"model {source.reference!r}: an adapter lies beside it ({ADAPTER_CONFIG}); move the .gguf into a folder of its own"
        )
    try:
        metadata, tensors = read(source)
        config = AutoConfig.from_pretrained(folder, gguf_file=name, local_files_only=True)
        apply_metadata(config, metadata, tensors, source)
        # newer releases keep the weights packed where they find a kernel, and then compute other numbers there
        packing = getattr(transformers, "GgufConfig", None)
        expanded = {"quantization_config": packing(dequantize=True)} if packing else {}
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            **expanded,
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model {source.reference!r}: cannot be loaded ({first_line(error)})") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"model {source.reference!r}: {len(missing)} weights are missing, {missing[0]} first; the file is incomplete"
        )
    if dropped := dropped_tensors(model, metadata, tensors) or sorted(info["unexpected_keys"]):
        raise UserError(
            f"model {source.reference!r}: {len(dropped)} of its tensors have no place in {type(model).__name__}, "
            f"{dropped[0]} first; convert it to safetensors"
        )
    check_rotary_dimensions(model, metadata, source)
    # the expanded model is an ordinary one; save_pretrained must not call it quantised
    for owner, attribute in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
    ):
        if attribute in vars(owner):
            delattr(owner, attribute)
    model.is_quantized = False
    return model


def read(source: ModelSource) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a file's metadata, and its tensors as the reader has them, by name. Raises UserError for a part of a model or an adapter."""
    from gguf import GGUFReader

    reader = GGUFReader(source.path)
    # the words of a tokenizer are many, and transformers' own to read
    metadata = {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith(("tokenizer.", "GGUF."))
    }
    if metadata.get("split.count", 1) > 1:
        raise UserError(f"model {source.reference!r}: one of {metadata['split.count']} files of a model; merge them")
    if metadata.get("general.type", "model") != "model":
        raise UserError(f"model {source.reference!r}: a .gguf of type {metadata['general.type']!r}, not a model")
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def apply_metadata(
    config: PreTrainedConfig, metadata: dict[str, Any], tensors: dict[str, Any], source: ModelSource
) -> None:
    """Write into a config what transformers left out of it. Raises UserError naming the first key that has no place there."""
    architecture = metadata["general.architecture"]
    own = {
        key.removeprefix(f"{architecture}."): each
        for key, each in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    left = {key: each for key, each in own.items() if key not in consumed(architecture, metadata, tensors) | HARMLESS}
    apply_rope(config, own, left, tensors, source)
    for key, value in left.items():
        if key in AS_USUAL and value == AS_USUAL[key]:
            continue
        if (key not in AS_USUAL and value in SAYS_NOTHING) or says(config, key, value):
            continue
        attribute = ATTRIBUTES.get(key)
        if attribute is None or not hasattr(config, attribute):
            raise UserError(
                f"model {source.reference!r}: its metadata says {architecture}.{key} = {value!r}, which transformers' "
                f"{type(config).__name__} does not apply; convert it to safetensors"
            )
        setattr(config, attribute, value)


def says(config: PreTrainedConfig, key: str, value: Any) -> bool:
    """Tell whether a config says already what a key says."""
    if key == "rope.dimension_count":
        return True  # counted once the model is there
    if key == "attention.sliding_window_pattern":
        every = isinstance(value, int) and [(i + 1) % value != 0 for i in range(config.num_hidden_layers)]
        windowed = ["sliding" in kind for kind in getattr(config, "layer_types", None) or []]
        return windowed == (every or value)
    if key in ("attention.key_length", "attention.value_length") and not getattr(config, "head_dim", None):
        return bool(value == config.hidden_size // config.num_attention_heads)
    if key == "expert_feed_forward_length" and not hasattr(config, ATTRIBUTES[key]):
        return bool(value == getattr(config, "intermediate_size", None))
    held = getattr(config, ATTRIBUTES.get(key, key), None)
    if not isinstance(held, int | float) or not isinstance(value, int | float):
        return False
    return math.isclose(held, value, rel_tol=1e-6)


def consumed(architecture: str, metadata: dict[str, Any], tensors: Iterable[str]) -> set[str]:
    """Return the keys (after `<architecture>.`) that transformers' reader turns into config attributes."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    if architecture in newer_reader():
        seen = Seen(metadata | {"tokenizer.ggml.tokens": 1})
        newer_reader()[architecture](seen, tuple(tensors))
        return {key.removeprefix(f"{architecture}.") for key in seen.keys_read}
    plain = {name.replace("_", ""): mapping for name, mapping in GGUF_CONFIG_MAPPING.items()}
    mapping = plain.get(architecture.replace("-", "").replace("_", ""), {})
    return {key for key, attribute in mapping.items() if attribute is not None}


class Seen(dict[str, Any]):
    """A dict that remembers which of its keys were read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key)
        return super().get(key, default)


def dropped_tensors(model: PreTrainedModel, metadata: dict[str, Any], tensors: dict[str, Any]) -> list[str]:
    """Return the tensors of a file that transformers' older reader passes over, but for those that apply_rope reads."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    architecture = metadata["general.architecture"]
    if architecture in newer_reader():  # which tells by itself
        return []
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    kind = next(each for each, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, model.config.num_hidden_layers)
    # an output matrix of its own is what tells transformers that it is not tied
    placed: dict[str, str] = dict.fromkeys((*ROPE_TENSORS, "output.weight"), "")
    for parameter in model.state_dict():
        stem, _, suffix = processor.preprocess_name(parameter).rpartition(".")
        parts = stem.split(".")
        for start in range(len(parts)):  # as the reader does, by its name in the model and in each module around it
            if name := names.get_name(".".join(parts[start:])):
                placed[f"{name}.{suffix}"] = parameter
            else:
                inner = ".".join([*parts[start:], suffix])
                processor.perform_fallback_tensor_mapping(placed, f".{suffix}", "", inner)
    return sorted(name for name in tensors if name not in placed)


def newer_reader() -> dict[str, Any]:
    """Return what transformers' newer reader takes: architecture -> a function from metadata to a config; {} where there is none."""
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:
        return {}
    return dict(GGUF_CONFIG_ARCHS)


def check_rotary_dimensions(model: PreTrainedModel, metadata: dict[str, Any], source: ModelSource) -> None:
    """Raise UserError if another number of each head's dimensions rotates than the file says."""
    said = metadata.get(f"{metadata['general.architecture']}.rope.dimension_count")
    for rotary in rotary_modules(model).values():
        rotating = 2 * len(frequencies(rotary, kind_of(rotary, model))[0])
        if said and said != rotating:
            raise UserError(
                f"model {source.reference!r}: its metadata says rope.dimension_count = {said}, {type(model).__name__} rotates "
                f"{rotating}; convert it to safetensors"
            )
