"""Which files of a checkpoint folder are opened when it is loaded: the weights transformers chooses, and all else that decides numbers."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..disk import json_in
from ..errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
# what no loading of safetensors opens: texts about a model, traces of its training, weights of other formats. Whatever is
# not listed here counts, so that a kind of file nobody thought of changes the fingerprint instead of passing unseen.
NEVER_OPENED = (
    ".*", "readme*", "license*", "notice*", "*.md", "training.json", "training_log.jsonl", "accuracy.json",
    "trainer_state.json",
    "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf",
    "*.svg", "*.png", "*.jpg", "*.jpeg", "*.pdf", "*.lock",
)  # fmt: skip
DISTRIBUTED = (
    r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"  # transformers reads such shards before any other weights
)


def weight_files(folder: Path, config: dict[str, Any], reference: str) -> list[Path]:
    """Return the safetensors files that transformers chooses in a folder, an adapter's among them.

    The file or index that the config names, else model.safetensors, else what model.safetensors.index.json names.
    Raises UserError if there are none, if one is missing, lies outside the folder, or cannot be read safely.
    """
    if any(re.fullmatch(DISTRIBUTED, file.name) for file in folder.iterdir()):
        raise UserError(
            f"model {reference!r}: its weights are a distributed checkpoint; save it as one: model.save_pretrained"
        )
    explicit = config.get("transformers_weights")
    name = str(explicit) if explicit else SINGLE if (folder / SINGLE).is_file() else INDEX
    if not explicit and not (folder / name).is_file():
        raise UserError(
            f"model {reference!r}: no .safetensors weights in it (looked for {SINGLE} and {INDEX}); "
            "pickled weights are not read, convert them"
        )
    names = named_by_index(folder / name, reference) if name.endswith(".index.json") else [name]
    if (folder / ADAPTER_CONFIG).is_file():
        names.append(ADAPTER)
    return [weight_file(folder, each, reference) for each in names]


def named_by_index(index: Path, reference: str) -> list[str]:
    """Return the file names of a safetensors index."""
    try:
        names = set(json_in(index)["weight_map"].values())
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("its weight_map names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model {reference!r}: its {index.name} cannot be read ({error})") from error
    return sorted(names)


def weight_file(folder: Path, name: str, reference: str) -> Path:
    """Return a weight file of a folder. Raises UserError if it is missing, pickled, or lies elsewhere.

    A file of the folder may be a link into it or, in a hub cache's snapshot, into that cache's blobs; a link or a name that
    leads elsewhere could change without the folder changing.
    """
    file = folder / name
    if not name.endswith(".safetensors"):
        raise UserError(
            f"model {reference!r}: weights {name!r} are not .safetensors; pickled weights are not read, convert them"
        )
    if not file.is_file():
        raise UserError(f"model {reference!r}: weights {name!r} are missing; the checkpoint is incomplete")
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    # the name itself must stay inside too: sub/../../x may resolve anywhere
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not any(file.resolve().is_relative_to(each) for each in homes):
        raise UserError(f"model {reference!r}: weights {name!r} lie outside its folder; copy them into it")
    return file


def opened_files(folder: Path, config: dict[str, Any], reference: str) -> list[Path]:
    """Return every file of a folder that can decide a number, in a fixed order: all but NEVER_OPENED, and all code below it."""
    found = {file for file in folder.iterdir() if file.is_file() and not never_opened(file.name)}
    found |= set(code_files(folder))
    if "auto_map" in config and "ssmax" not in config:  # code of its own may open anything
        found |= {file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")}
    return sorted(found | set(weight_files(folder, config, reference)))


def never_opened(name: str) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in NEVER_OPENED)


def code_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files of a folder and below: a checkpoint's own code may import them."""
    for file in folder.rglob("*.py"):
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file
