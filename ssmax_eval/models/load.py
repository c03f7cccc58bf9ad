"""Load a model and tokenizer with the mechanism they were trained with, refusing checkpoints whose mechanism and weights disagree."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, modeling_utils
from transformers.modeling_utils import load_state_dict
from transformers.models.auto import auto_factory

from ..disk import json_in
from ..errors import UserError, first_line, reading
from ..mechanisms.attach import attach
from ..mechanisms.spelling import Attention, check_entry, note_from_scratch
from .buffers import compute_buffers
from .causal import refuse_unless_causal, refuse_without_words
from .checkpoint import PREFIX, classes
from .config import auto_class, load_config
from .encoders import is_encoder, refuse_without_mask
from .gguf import load_gguf
from .headers import refuse_more_layers
from .opened import ADAPTER, ADAPTER_CONFIG
from .shape import refuse_other_shapes
from .sources import ModelSource, resolve
from .weights import check_weights, refuse_other_frequencies, refuse_unscaled_rope

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_model(
    reference: str | ModelSource,
    attention: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    device_map: str | dict[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return an eval-mode model on its device and its tokenizer.

    reference: bundled name, directory, .gguf file or hub id. attention: a mechanism to swap in; None keeps the checkpoint's own.
    dtype: auto (the checkpoint's; bfloat16 for .gguf), float32, bfloat16, float16. device: auto, cpu, cuda, cuda:N, mps.
    device_map: auto spreads the layers over all devices, then memory, then disk (accelerate); or a map of one's own; instead of
    device. Raises UserError for whatever a user can cause. Only safetensors and .gguf weights are read.
    """
    source = resolve(reference) if isinstance(reference, str) else reference
    where = pick_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: allowed are auto, {', '.join(DTYPES)}")
    if attention is not None:
        Attention.of(attention)
    refuse_map(device_map, device, source)
    with reading(f"model {source.reference!r}"):
        if source.is_gguf:
            tokenizer = load_tokenizer(source, trust_remote_code)
            model = load_gguf(source, torch.bfloat16 if dtype == "auto" else DTYPES[dtype])
        else:
            config = check_config(source, trust_remote_code)
            tokenizer = load_tokenizer(source, trust_remote_code, config)
            model = load_checkpoint(source, config, dtype, trust_remote_code, device_map)
            refuse_without_words(model)
        if attention is not None:
            note_from_scratch(Attention.of(attention))
            attach(model, attention)
        model = (model if device_map is not None else model.to(where)).eval()
        if is_encoder(model):
            refuse_without_mask(model, tokenizer)
        else:
            refuse_unless_causal(model)
    return model, tokenizer


def refuse_map(device_map: str | dict[str, Any] | None, device: str, source: ModelSource) -> None:
    """Raise UserError for a device map that says nothing, or beside a device, or for weights that cannot be spread."""
    if device_map is None:
        return
    if isinstance(device_map, str) and device_map != "auto":
        raise UserError(f"device map {device_map!r}: allowed is auto; from Python also a map of modules to devices")
    if device != "auto":
        raise UserError(f"device {device!r} with a device map: the map places the layers; give one of them")
    if source.is_gguf:
        raise UserError(
            f"model {source.reference!r}: a .gguf file cannot be spread over devices; leave the device map out"
        )


def pick_device(device: str) -> torch.device:
    """Return the torch device of `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; asking for one that is not there is an error."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", device):
        raise UserError(f"device {device!r}: allowed are auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu or auto"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps': not available on this machine; use --device cpu or auto")
    return torch.device(device)


def check_config(source: ModelSource, trust_remote_code: bool) -> PreTrainedConfig:
    """Return a checkpoint's config. Raises UserError for one that cannot be one of ours, before anything of it is loaded."""
    config = source.config()
    if not source.weights:
        raise UserError(f"model {source.reference!r}: no weights in it")
    if (source.path / ADAPTER_CONFIG).is_file() and importlib.util.find_spec("peft") is None:
        raise UserError(
            f"model {source.reference!r}: an adapter lies in it ({ADAPTER_CONFIG}), and peft is not installed; "
            "run: pip install peft, or take the adapter out"
        )
    refuse_more_layers(source)
    check_mechanism(source)
    if "auto_map" in config and "ssmax" not in config and not trust_remote_code:
        raise UserError(
            f"model {source.reference!r}: it runs code of its own; if you trust it, add --trust-remote-code"
        )
    return load_config(source, trust_remote_code)


def load_tokenizer(
    source: ModelSource, trust_remote_code: bool, config: PreTrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. Raises UserError if it has none: transformers builds some classes with no words at all."""
    folder = source.path.parent if source.is_gguf else source.path
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if source.is_gguf:
        options["gguf_file"] = source.path.name
    else:
        options["config"] = config or check_config(source, trust_remote_code)
    refuse_tokenizer_code(source, folder, trust_remote_code)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # the libraries below raise anything, from KeyError to pyo3's own exceptions
        reason = f"cannot be loaded ({first_line(error)})"
        raise UserError(f"model {source.reference!r}: its tokenizer is missing or {reason}") from error
    if not source.is_gguf:
        refuse_without_vocabulary(source, tokenizer)
    try:  # what its config says is not looked at before it is used
        tokenizer.decode(tokenizer("a 1é", verbose=False).input_ids)
    except Exception as error:
        raise UserError(
            f"model {source.reference!r}: its tokenizer cannot be used ({first_line(error)}); "
            "mend its tokenizer_config.json or tokenizer.json"
        ) from error
    return tokenizer


def refuse_tokenizer_code(source: ModelSource, folder: Path, trust_remote_code: bool) -> None:
    """Raise UserError for a tokenizer of code of its own that is not trusted, where transformers takes another, or that lies elsewhere."""
    said = []
    for file in (folder / name for name in TOKENIZER_FILES):  # all that transformers takes as it is, and saves again
        try:
            said.append(json_in(file) if file.is_file() else {})
        except (OSError, ValueError) as error:
            reason = f"cannot be loaded ({file.name}: {first_line(error)})"
            raise UserError(f"model {source.reference!r}: its tokenizer is missing or {reason}") from error
    told = said[0]
    code = told.get("auto_map") if isinstance(told, dict) else None
    named = code.get("AutoTokenizer") if isinstance(code, dict) else code  # in its first releases a list alone
    places = [each for each in (named if isinstance(named, list) else [named]) if each]
    if places and not trust_remote_code:
        raise UserError(
            f"model {source.reference!r}: its tokenizer runs code of its own ({places[0]}); if you trust it, add "
            "--trust-remote-code"
        )
    if any("--" in str(place) for place in places):
        raise UserError(
            f"model {source.reference!r}: its tokenizer's code lies in another repository ({places[0]}); copy it into the folder"
        )


def refuse_without_vocabulary(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a tokenizer whose class reads a vocabulary from files, where there is none of them."""
    named = type(tokenizer).vocab_files_names.values()  # none for a tokenizer of bytes
    looked = dict.fromkeys([*named, "tokenizer.json", "tekken.json", "*.model", "*.tiktoken"])
    if named and not any(any(source.path.glob(pattern)) for pattern in looked):
        raise UserError(f"model {source.reference!r}: no tokenizer in it (looked for {', '.join(looked)})")


def load_checkpoint(
    source: ModelSource,
    config: PreTrainedConfig,
    dtype: str,
    trust_remote_code: bool,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Load a safetensors folder with the mechanism its config names; weights or tensors of it that are missing are an error."""
    refuse_other_shapes(source, config, trust_remote_code)
    carries = "ssmax" in source.config()
    options: dict[str, Any] = {
        "config": config,
        "dtype": "auto" if dtype == "auto" else DTYPES[dtype],
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    if device_map is not None:
        options["device_map"] = device_map
    try:
        with adapter_aside():
            if carries:
                _, model_class = classes(base_type(source))
                model, info = model_class.from_pretrained(source.path, **options)
            else:
                opened = auto_class(config, source)
                model, info = opened.from_pretrained(source.path, trust_remote_code=trust_remote_code, **options)
        check_weights(source, model, info)
        compute_buffers(model)
        if (source.path / ADAPTER_CONFIG).is_file():
            info = model.load_adapter(str(source.path), dtype=model.dtype, use_safetensors=True).to_dict()
            check_weights(source, model, adapted(model, source.path / ADAPTER) if info["missing_keys"] else info)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model {source.reference!r}: cannot be loaded ({first_line(error)})") from error
    refuse_unscaled_rope(source, model)
    refuse_other_frequencies(source, model)
    return_plainly(model)
    return model


@contextmanager
def adapter_aside() -> Iterator[None]:
    """Load a folder's model without the adapter that lies in it, which is put on afterwards.

    In one go, transformers tells of the adapter's missing weights only. Its releases look for an adapter in other places.
    """
    finders = (auto_factory, "find_adapter_config_file"), (modeling_utils, "maybe_load_adapters")
    before = [getattr(module, name) for module, name in finders]
    auto_factory.find_adapter_config_file = lambda *_, **__: None
    modeling_utils.maybe_load_adapters = lambda path, *_, **adapter: (None, path, adapter)
    try:
        yield
    finally:
        for (module, name), found in zip(finders, before, strict=True):
            setattr(module, name, found)


def adapted(model: PreTrainedModel, file: Path) -> dict[str, list[str]]:
    """Load an adapter's weights by PEFT's own names, and return those that are missing and those that are not used.

    transformers does not know every name that PEFT saves: the magnitudes of DoRA, for one, are missing to it.
    """
    peft = importlib.import_module("peft")  # there, as the adapter has been put on
    saved = {name.removeprefix("base_model.model."): tensor for name, tensor in load_state_dict(str(file)).items()}
    peft.set_peft_model_state_dict(model, saved)
    held = peft.get_peft_model_state_dict(model)
    taken = {name for name, tensor in held.items() if name in saved and torch.equal(saved[name].to(tensor), tensor)}
    return {"missing_keys": [*(held.keys() - taken)], "unexpected_keys": [*(saved.keys() - taken)]}


def return_plainly(model: PreTrainedModel) -> None:
    """Let generate return token ids, whatever a generation config or code of its own says of the form of outputs."""
    model.config.return_dict = True
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    outputs = ("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits")
    for name in outputs:
        if getattr(generation, name, None):
            setattr(generation, name, False)
    generation.use_cache = True


def base_type(source: ModelSource) -> str:
    """Return the model type without its mechanism."""
    return str(source.config()["model_type"]).removeprefix(PREFIX)


def check_mechanism(source: ModelSource) -> None:
    """Raise UserError for an `ssmax` entry of a config that names no known mechanism, and for a model type of ours without one."""
    config = source.config()
    if "ssmax" not in config and not str(config["model_type"]).startswith(PREFIX):
        return
    check_entry(config.get("ssmax"), f"model {source.reference!r}")
    classes(base_type(source))
