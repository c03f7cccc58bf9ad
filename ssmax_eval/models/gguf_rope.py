"""RoPE as a .gguf file's metadata and tensors give it, in transformers' parameters. Formulas: llama.cpp's, which writes these files."""

import math
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from ..errors import UserError
from .config import layer_types_with_rope
from .sources import ModelSource

SAYS_NOTHING: tuple[Any, ...] = (0, False, None, "", [])
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Llama 3.1's RoPE, of whose parameters a file keeps only the factors that follow from them
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def apply_rope(
    config: PreTrainedConfig, own: dict[str, Any], left: dict[str, Any], tensors: dict[str, Any], source: ModelSource
) -> None:
    """Set the RoPE parameters that a file's keys and tensors give, and take these keys out of `left`.

    Where layer types have parameters of their own, the full-attention layers get them. Raises UserError.
    """
    given = {key.removeprefix("rope.scaling."): value for key, value in own.items() if key.startswith("rope.scaling.")}
    for key in [key for key in left if key.startswith("rope.scal") or key == "rope.freq_base"]:
        del left[key]
    given.setdefault("factor", own.get("rope.scale_linear", 0.0))  # the older spelling
    theta = own.get("rope.freq_base")
    factors = {
        name: tensor.data.astype(np.float64).reshape(-1) for name, tensor in tensors.items() if name in ROPE_TENSORS
    }
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        if factors or given["factor"] or theta:
            raise UserError(
                f"model {source.reference!r}: its metadata has RoPE keys, {type(config).__name__} has no RoPE"
            )
        return
    nested = layer_types_with_rope(config, parameters)
    parameters = parameters["full_attention"] if nested else parameters
    if theta:
        parameters["rope_theta"] = float(theta)
    if nested and (local := left.pop("rope.freq_base_swa", None)):
        config.rope_parameters["sliding_attention"]["rope_theta"] = float(local)
    length = int(given.get("original_context_length") or own.get("context_length") or 0)
    parameters.update(rope_scaling(given, factors, parameters["rope_theta"], length, source))
    if original := parameters.get("original_max_position_embeddings", given.get("original_context_length")):
        # some classes read it from here, and the training length is read from here
        config.original_max_position_embeddings = int(original)
    config.standardize_rope_params()
    config.validate_rope()


def rope_scaling(
    given: dict[str, Any], factors: dict[str, Any], theta: float, length: int, source: ModelSource
) -> dict[str, Any]:
    """Return the RoPE parameters of the `rope.scaling.*` keys and the tensors of frequency factors. Raises UserError."""
    known = {
        "type",
        "factor",
        "original_context_length",
        "attn_factor",
        "finetuned",
        "yarn_beta_fast",
        "yarn_beta_slow",
    }
    kind, factor = given.get("type", "linear"), float(given["factor"] or 1.0)
    if unknown := sorted(key for key in given.keys() - known if given[key] not in SAYS_NOTHING):
        raise UserError(
            f"model {source.reference!r}: its metadata says rope.scaling.{unknown[0]} = {given[unknown[0]]!r}, which "
            "transformers does not apply; convert it to safetensors"
        )
    temperature = float(given.get("attn_factor", 1.0) or 1.0)
    scaled = factor if kind == "linear" else 1.0
    if "rope_freqs.weight" in factors and kind in ("linear", "none") and temperature == 1:
        return by_factors(factors["rope_freqs.weight"] * scaled, theta, length)
    # the converter of Phi-3 names no type
    if len(factors) == 2 and "rope_freqs.weight" not in factors and (kind == "longrope" or scaled == 1):
        sides = {name: factors[f"rope_factors_{name}.weight"].tolist() for name in ("short", "long")}
        return {
            "rope_type": "longrope", "short_factor": sides["short"], "long_factor": sides["long"],
            "original_max_position_embeddings": length, "attention_factor": temperature,
        }  # fmt: skip
    if factors or kind not in ("none", "linear", "yarn") or (kind != "yarn" and temperature != 1):
        raise UserError(
            f"model {source.reference!r}: its metadata says rope.scaling.type = {kind!r} with {sorted(factors) or given}, "
            "which transformers has no RoPE for; convert it to safetensors"
        )
    if kind == "yarn":
        # llama.cpp multiplies by attn_factor beside YaRN's own temperature
        own = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        betas = {name: float(given[f"yarn_{name}"]) for name in ("beta_fast", "beta_slow") if f"yarn_{name}" in given}
        return {
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length,
            "attention_factor": temperature * own, **betas,
        }  # fmt: skip
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else {}


def by_factors(factors: Any, theta: float, length: int) -> dict[str, Any]:
    """Return RoPE parameters that divide each frequency by its factor: Llama 3.1's where they give these, else longrope's on both sides."""
    pairs = np.arange(len(factors)) / len(factors)
    turns = LLAMA3["original_max_position_embeddings"] * theta**-pairs / (2 * math.pi)  # within the original length
    low, high, most = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"], float(factors.max())
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if most > 1 and np.allclose(1 / factors, (1 - smooth) / most + smooth, rtol=1e-5):
        return {"rope_type": "llama3", "factor": most, **LLAMA3}
    return {
        "rope_type": "longrope", "short_factor": factors.tolist(), "long_factor": factors.tolist(),
        "original_max_position_embeddings": length, "attention_factor": 1.0,
    }  # fmt: skip
