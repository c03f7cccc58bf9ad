"""Where a run's model comes from: weights, architecture, training."""

import hashlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .mechanisms.train_length import train_length_of
from .models.sources import ModelSource
from .models.subjects import Subject
from .training.recipes import RECIPES


def describe_model(
    each: Subject, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, dtype: str
) -> dict[str, Any]:
    """Return what a run's record tells of its model. model: None for one that is not in this process: of it little is known."""
    counts = {"tokenizer": type(tokenizer).__name__, "vocabulary": len(tokenizer)}
    if model is None:
        assert each.foreign is not None
        unknown = ("architecture", "parameters", "train_length", "native_attention", "dtype", "training")
        named = {"label": each.label, "reference": each.reference, "fingerprint": each.fingerprint}
        return {**named, **dict.fromkeys(unknown), **counts, "foreign": each.foreign.record()}
    return {
        "label": each.label,
        # a path says nothing on another machine, and may say too much: its last part and the fingerprint do
        "reference": Path(each.reference).name if each.source and Path(each.reference).exists() else each.reference,
        "fingerprint": each.fingerprint,
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_length": train_length_of(model.config),
        "native_attention": each.native_attention,
        "dtype": str(model.dtype).removeprefix("torch."),
        "dtype_requested": dtype,
        # as far as a tokenizer tells: makers of base models leave the template out, most of them
        "kind": "instruct" if getattr(tokenizer, "chat_template", None) else "base",
        **counts,
        "training": None if each.source is None else describe_training(each.source),
    }


def describe_training(source: ModelSource) -> dict[str, Any] | None:
    """Return how ssmax-eval trained a model; None for any other.

    configuration: all but the seed in words, key: a hash of it; attention, seed, seconds, and the training log.
    """
    record = source.training()
    job = record.get("job")
    if not isinstance(job, dict) or not isinstance(job.get("recipe"), dict):
        return None
    fraction = job.get("swap_fraction")
    last = f"for the last {fraction}" if fraction else "swapped in after training"
    swap = f", {job['swap_to']} {last}" if job.get("swap_to") else ""
    start = ", trained further" if job.get("start") else ""
    but_seed = {name: value for name, value in job.items() if name != "seed"}
    described = {
        "configuration": f"{named_recipe(job['recipe'])}, {job.get('attention')}{swap}{start}",
        "key": hashlib.sha256(json.dumps(but_seed, sort_keys=True).encode()).hexdigest()[:12],
        "attention": record.get("attention", job.get("attention")),
        "seed": job.get("seed"),
        "seconds": record.get("seconds"),
        "signs": told_signs(record.get("signs")),
        "log": source.training_log(),
    }
    found: dict[str, Any] = finite(described)
    return found


def told_signs(signs: Any) -> list[str]:
    """Return the signs of what can go wrong (training/signs.py) in words."""
    told = signs.get("told") if isinstance(signs, dict) else None
    return [each for each in told if isinstance(each, str)] if isinstance(told, list) else []


def finite(value: Any) -> Any:
    """Return JSON values with None for numbers that JSON has no word for, as a training that diverged logs."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def named_recipe(fields: dict[str, Any]) -> str:
    """Name a recipe by its name and by what is set otherwise in it."""
    name = str(fields.get("name"))
    known = asdict(RECIPES[name]) if name in RECIPES else {}
    changed = [
        f"{key}={os.path.basename(str(value)) if key == 'text' else value}"
        for key, value in fields.items()
        if key in known and json.dumps(known[key]) != json.dumps(value)
    ]
    return " ".join([name, *changed])
