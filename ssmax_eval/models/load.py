"""Load a model and tokenizer with the attention law they were trained with, refusing checkpoints whose law and weights disagree."""

import hashlib
import json
import logging
import re

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..attention.interface import attach
from ..attention.laws import LARGEST_LENGTH, parse_law
from ..errors import UserError
from .checkpoint import PREFIX, classes
from .sources import ModelSource, resolve

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def load_model(
    reference: str | ModelSource,
    attention: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return an eval-mode model on its device and its tokenizer.

    reference: bundled name, directory, .gguf file or hub id. attention: a law to swap in; None keeps the checkpoint's own.
    dtype: auto (the checkpoint's; bfloat16 for .gguf), float32, bfloat16, float16. device: auto, cpu, cuda, cuda:N, mps.
    Raises UserError for whatever a user can cause. Only safetensors and .gguf weights are read.
    """
    source = resolve(reference) if isinstance(reference, str) else reference
    where = pick_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: allowed are auto, {', '.join(DTYPES)}")
    if attention is not None:
        parse_law(attention)
    if not source.is_gguf:
        check_config(source, trust_remote_code)
    tokenizer = load_tokenizer(source, trust_remote_code)
    model = load_gguf(source, dtype) if source.is_gguf else load_checkpoint(source, dtype, trust_remote_code)
    if attention is not None:
        attach(model, attention)
    return model.to(where).eval(), tokenizer


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


def check_config(source: ModelSource, trust_remote_code: bool) -> None:
    """Raise UserError for a checkpoint that cannot be one of ours, before anything of it is loaded."""
    config = source.config()
    if not source.files("*.safetensors"):
        raise UserError(
            f"model {source.reference!r}: no .safetensors weights in it; pickled weights are not read, convert them"
        )
    check_law(source)
    if "auto_map" in config and "ssmax" not in config and not trust_remote_code:
        raise UserError(
            f"model {source.reference!r}: it runs code of its own; if you trust it, add --trust-remote-code"
        )
    try:
        AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise UserError(f"model {source.reference!r}: its config.json cannot be used ({first_line(error)})") from error


def load_tokenizer(source: ModelSource, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    folder, file = (source.path.parent, source.path.name) if source.is_gguf else (source.path, None)
    named = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
    if file is None and not source.files(*named, "tokenization_*.py"):
        raise UserError(f"model {source.reference!r}: no tokenizer in it (looked for {', '.join(named)})")
    try:
        options = {"gguf_file": file} if file else {}
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True, **options
        )
    except Exception as error:  # the libraries below raise anything, from KeyError to pyo3's own exceptions
        raise UserError(f"model {source.reference!r}: its tokenizer cannot be loaded ({first_line(error)})") from error


def load_gguf(source: ModelSource, dtype: str) -> PreTrainedModel:
    """Load a .gguf file, its quantised weights expanded to dtype (auto: bfloat16)."""
    kind = torch.bfloat16 if dtype == "auto" else DTYPES[dtype]
    # newer releases keep the weights packed where they find a kernel, and then compute other numbers there
    packing = getattr(transformers, "GgufConfig", None)
    expanded = {"quantization_config": packing(dequantize=True)} if packing else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.path.parent, gguf_file=source.path.name, dtype=kind, local_files_only=True, **expanded
        )
    except Exception as error:
        raise UserError(f"model {source.reference!r}: cannot be loaded ({first_line(error)})") from error
    # the expanded model is an ordinary one; save_pretrained must not call it quantised
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
    ):
        if name in vars(owner):
            delattr(owner, name)
    model.is_quantized = False
    return model


def load_checkpoint(source: ModelSource, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    """Load a safetensors directory with the law its config names; weights or law tensors that are missing are an error."""
    base, lawful = base_type(source), "ssmax" in source.config()
    options = {
        "dtype": "auto" if dtype == "auto" else DTYPES[dtype],
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        if lawful:
            config_class, model_class = classes(base)
            config = config_class.from_dict(
                source.config() | {"model_type": PREFIX + base, "attn_implementation": None}
            )
            model, info = model_class.from_pretrained(source.path, config=config, **options)
        else:
            options["trust_remote_code"] = trust_remote_code
            model, info = AutoModelForCausalLM.from_pretrained(source.path, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model {source.reference!r}: cannot be loaded ({first_line(error)})") from error
    unexpected = sorted(info["unexpected_keys"])
    if of_law := [key for key in unexpected if ".ssmax." in key]:
        raise UserError(
            f"model {source.reference!r}: it holds {len(of_law)} ssmax tensors, but its config names no attention law "
            "('ssmax' entry); without the law it would compute something else"
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"model {source.reference!r}: {len(missing)} weights are missing, {missing[0]} first; the checkpoint is incomplete"
        )
    if unexpected:
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: model %r: %d weights are not used, %s first",
            source.reference,
            len(unexpected),
            unexpected[0],
        )
    for name, parameter in model.named_parameters():
        if ".ssmax." in name and not torch.isfinite(parameter).all():
            raise UserError(f"model {source.reference!r}: {name} is not finite; the checkpoint is broken")
    return model


def base_type(source: ModelSource) -> str:
    """Return the model type without its law."""
    return str(source.config()["model_type"]).removeprefix(PREFIX)


def check_law(source: ModelSource) -> None:
    """Raise UserError for an `ssmax` entry of a config that names no law, and for a law's model type without one."""
    config = source.config()
    if "ssmax" not in config and not str(config["model_type"]).startswith(PREFIX):
        return
    entry = config.get("ssmax")
    if not isinstance(entry, dict) or not isinstance(entry.get("attention"), str):
        raise UserError(f"model {source.reference!r}: the 'ssmax' entry of its config names no attention law")
    parse_law(entry["attention"])
    length = entry.get("train_length")
    if not (length is None or (isinstance(length, int) and 2 <= length <= LARGEST_LENGTH)):
        raise UserError(
            f"model {source.reference!r}: train_length {length!r} in the 'ssmax' entry of its config: allowed are whole numbers from 2"
        )
    classes(base_type(source))


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits of the sha256 over a loaded pair, for models that came from no file.

    Config, weights, rotary frequencies as they are now, and all that makes the tokenizer's ids.
    """
    digest = hashlib.sha256(model.config.to_json_string().encode())
    rotary = {name: buffer for name, buffer in model.named_buffers() if "inv_freq" in name}
    for name, tensor in {**model.state_dict(), **rotary}.items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    digest.update(f"{rules}\0{tokenizer.bos_token_id}\0{tokenizer('a').input_ids}".encode())
    return digest.hexdigest()[:16]


def first_line(error: BaseException) -> str:
    """Return an error's kind and the start of its text, on one line."""
    text = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in text:
        return "the shapes of its weights are not those of its config"
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
