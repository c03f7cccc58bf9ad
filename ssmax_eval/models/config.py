"""Read a config.json as its model needs it: nothing ignored in silence, and nothing that only changes what a forward returns."""

import json
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PreTrainedConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import UserError, first_line
from .checkpoint import PREFIX, classes
from .encoders import opens_as_encoder
from .sources import ModelSource

# these change what a forward returns, and no number in it
SWITCHES = {
    "return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "output_router_logits", "use_cache",
    "torchscript",
}  # fmt: skip
IMPLEMENTATION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
# what a set of RoPE parameters can hold without a type that says what to do with it
STRETCHING = {
    "factor",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
}  # mean nothing under `default`
TYPELESS = {"rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved", "rope_type", "type"}


def load_config(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config of a checkpoint folder, as transformers builds it but for SWITCHES and a fast attention it asks for.

    Raises UserError for one that cannot be built, RoPE scaling that would be ignored, and code that lies elsewhere.
    """
    refuse_not_finite(source.config(), source)
    raw = neutral(source.config(), source)
    if not isinstance(raw["model_type"], str):
        raise UserError(
            f"model {source.reference!r}: model_type in its config is {raw['model_type']!r}: allowed is a text"
        )
    remote = raw.get("auto_map") if trust_remote_code and not raw["model_type"].startswith(PREFIX) else None
    if isinstance(remote, dict) and any("--" in str(place) for place in remote.values()):
        raise UserError(
            f"model {source.reference!r}: its code lies in another repository ({next(iter(remote.values()))}); copy it into the folder"
        )
    if "configuration_files" in raw:
        raise UserError(f"model {source.reference!r}: its config.json points to other config files; keep one of them")
    if raw["model_type"].startswith(PREFIX):
        classes(raw["model_type"].removeprefix(PREFIX))
    if not remote and raw["model_type"] not in CONFIG_MAPPING:
        raise UserError(
            f"model {source.reference!r}: model type {raw['model_type']!r} is not known to transformers {transformers.__version__}"
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        if remote and "AutoConfig" in remote:
            config = AutoConfig.from_pretrained(
                source.path, attn_implementation=raw.get("attn_implementation"), output_attentions=False, **options
            )
            config.return_dict = True
        else:
            # by way of a file, so that every correction transformers makes when it reads one is made
            with tempfile.TemporaryDirectory() as folder:
                code = raw.pop("auto_map", None)
                (Path(folder) / "config.json").write_text(json.dumps(raw))
                config = AutoConfig.from_pretrained(folder, **options)
            config.name_or_path = str(source.path)
            if code is not None:
                config.auto_map = code
    except UserError:
        raise
    except Exception as error:  # config classes raise anything
        raise UserError(f"model {source.reference!r}: its config.json cannot be used ({first_line(error)})") from error
    check_rope(config, source)
    return config


def neutral(raw: dict[str, Any], source: ModelSource) -> dict[str, Any]:
    """Return a config.json's values, those of nested configs too, without SWITCHES and fast attention, and with RoPE types known."""
    kept = {
        key: neutral(each, source) if isinstance(each, dict) else each
        for key, each in raw.items()
        if key not in SWITCHES
    }
    for key in IMPLEMENTATION:
        if key in kept:
            kept[key] = known_implementation(kept[key], source)
    for key in ("rope_scaling", "rope_parameters"):
        if key in kept:
            kept[key] = known_rope(kept[key], key, raw, source)
    return kept


def refuse_not_finite(values: Any, source: ModelSource, place: str = "") -> None:
    """Raise UserError for a NaN in a config.json, and for an infinity among what RoPE is made of; elsewhere that is a limit."""
    if isinstance(values, dict):
        for key, each in values.items():
            refuse_not_finite(each, source, f"{place}.{key}".removeprefix("."))
    elif isinstance(values, list):
        for each in values:
            refuse_not_finite(each, source, place)
    elif isinstance(values, float) and (math.isnan(values) or (math.isinf(values) and "rope" in place)):
        raise UserError(f"model {source.reference!r}: {place} in its config is {values}: allowed are finite numbers")


def known_implementation(name: Any, source: ModelSource) -> Any:
    """Return the attention implementation to ask for: what transformers has or a user registered, None (its default) for a fast one.

    Flash and flex attention compute softmax attention, on some devices and where their package is. Any other name is an error.
    """
    if isinstance(name, dict):
        return {part: known_implementation(each, source) for part, each in name.items()}
    if name is None or name in ("eager", "sdpa"):
        return name
    if any(word in str(name) for word in ("flash", "flex")):
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: model %r: its config asks for attention implementation %r; transformers' default is used",
            source.reference,
            name,
        )
        return None
    if name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return name
    raise UserError(
        f"model {source.reference!r}: its config asks for attention implementation {name!r}, which is not registered; "
        "register it, or take 'attn_implementation' out"
    )


def known_rope(parameters: Any, key: str, config: dict[str, Any], source: ModelSource) -> Any:
    """Return RoPE parameters with the names transformers knows. Raises UserError for some that it would ignore."""
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise UserError(
            f"model {source.reference!r}: {key} {parameters!r} in its config: allowed are null and an object"
        )
    if nested := {name: each for name, each in parameters.items() if isinstance(each, dict)}:
        return parameters | {name: known_rope(each, key, config, source) for name, each in nested.items()}
    kind = parameters.get("rope_type") or parameters.get("type")
    given = {name for name, value in parameters.items() if value not in (None, 1, 1.0)}
    ignored = given - TYPELESS if kind is None else given & STRETCHING if kind == "default" else set()
    if ignored:
        what = "no 'rope_type'" if kind is None else "rope_type 'default'"
        raise UserError(
            f"model {source.reference!r}: {key} in its config has {min(ignored)!r} but {what}, and would be "
            f"ignored; give a type, one of {', '.join(sorted(ROPE_INIT_FUNCTIONS))}, or take {key} out"
        )
    if kind is None:
        return parameters
    if kind == "su":  # longrope's first name; the same formula as long as its temperature comes from the two lengths
        named = [place.get("original_max_position_embeddings") for place in (config, parameters)]
        if any(named) and not {"factor", "attention_factor"} & parameters.keys():
            return {name: each for name, each in parameters.items() if name != "type"} | {"rope_type": "longrope"}
        raise UserError(
            f"model {source.reference!r}: {key} type 'su' in its config: read as longrope only with "
            "original_max_position_embeddings and without a factor of its own"
        )
    return parameters


def check_rope(config: PreTrainedConfig, source: ModelSource) -> None:
    """Raise UserError if a config's class does not take the RoPE scaling that its config.json asks for."""
    raw = source.config()
    for part, built in ((raw, config), (raw.get("text_config"), config.get_text_config(decoder=True))):
        asked = (part or {}).get("rope_scaling") or (part or {}).get("rope_parameters")
        if not isinstance(asked, dict):
            continue
        given = getattr(built, "rope_parameters", None)
        known = {"default", "mrope", "axial", *ROPE_INIT_FUNCTIONS}
        kinds = rope_kinds(asked)
        if unknown := kinds - known - {"su"}:
            raise UserError(
                f"model {source.reference!r}: rope_type {unknown.pop()!r} in its config is not known to transformers; "
                f"known are {', '.join(sorted(known))}"
            )
        scaled = kinds - {"default", "mrope"}
        lost = scaled and not (isinstance(given, dict) and rope_kinds(given) - {"default"})
        misplaced = isinstance(given, dict) and any(
            isinstance(each, dict) and name not in layer_types_with_rope(built, given) for name, each in given.items()
        )
        if lost or misplaced:
            raise UserError(
                f"model {source.reference!r}: {type(built).__name__} does not take the RoPE scaling of its config "
                f"({', '.join(sorted(scaled or {'by layer type'}))}), it would be ignored; take it out"
            )


def layer_types_with_rope(config: PreTrainedConfig, parameters: dict[str, Any]) -> list[str]:
    """Return the layer types that RoPE parameters of a config are given by; none where one set is for all layers.

    Newer releases of transformers have this as a method of a config, `nested_rope_parameter_keys`.
    """
    types = getattr(config, "_rope_type_labels", None) or getattr(config, "layer_types", None) or ()
    return [name for name in parameters if name in types]


def rope_kinds(parameters: dict[str, Any]) -> set[str]:
    """Return the types that RoPE parameters name, of every layer type."""
    sets = [each for each in parameters.values() if isinstance(each, dict)] or [parameters]
    return {str(each.get("rope_type") or each.get("type") or "default") for each in sets}


def auto_class(config: PreTrainedConfig, source: ModelSource) -> Any:
    """Return the Auto class that opens a language model: causal, or an encoder that fills masks.

    Of a multimodal wrapper, text alone goes through it. Raises UserError for models that are none, naming their class and what
    they are.
    """
    name = (getattr(config, "architectures", None) or [type(config).__name__.removesuffix("Config")])[0]
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        raise UserError(
            f"model {source.reference!r}: {name} is an encoder-decoder, not a causal (decoder-only) language model"
        )
    code = getattr(config, "auto_map", None) or {}
    if opens_as_encoder(config) or ("AutoModelForMaskedLM" in code and "AutoModelForCausalLM" not in code):
        return AutoModelForMaskedLM
    if (
        "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
        or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        return AutoModelForCausalLM
    if text is not config and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    what = "multimodal and " if config.sub_configs else ""
    advice = "; save its text part as a model of its own" if config.sub_configs else ""
    raise UserError(
        f"model {source.reference!r}: {name} is {what}not a causal (decoder-only) language model: transformers has none of "
        f"type {config.model_type!r}{advice}"
    )
