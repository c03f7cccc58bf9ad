"""The folder of a training run: who may write it, what it holds, its record and its log."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import disk
from ..errors import UserError
from ..launch import launched
from ..models.sources import TRAINING, TRAINING_LOG

WORK = "checkpoints"  # inside the output folder while training runs
LOG = TRAINING_LOG


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder; of several processes of one training the first does so."""
    if not launched().is_first:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {str(folder)!r}: it holds something else than a training run; give another folder")
    with disk.held(folder, f"output {str(folder)!r}: another process is training into it; wait for it to end"):
        yield


def occupied(folder: Path, key: dict[str, Any], fresh: bool) -> bool:
    """Tell whether a folder holds this very model, finished. Raises UserError if it holds anything but this run."""
    if not folder.exists() or (folder.is_dir() and not disk.contents(folder)):
        return False
    try:
        found = read_record(folder)
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or "job" not in found:
        raise UserError(f"output {str(folder)!r}: it holds something else than a training run; give another folder")
    if fresh:
        return False
    if found["job"] != key or "retrofitted" in found:
        raise UserError(f"output {str(folder)!r}: it holds another training run; give another folder, or --fresh")
    return bool(found.get("finished")) and any(folder.glob("*.safetensors"))


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a finished training run."""
    record: dict[str, Any] = disk.json_in(folder / TRAINING)
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write a run's record, all of it or none."""
    with disk.whole(folder / TRAINING) as half:
        half.write_text(json.dumps(record, indent=2))


def read_log(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a training log, a half-written last one left out. Raises UserError for one that is damaged."""
    try:
        lines = disk.bytes_in(file).splitlines(keepends=True) if file.exists() else []
        return [dict(disk.json_of(line)) for line in lines if line.endswith(b"\n")]
    except (ValueError, TypeError) as error:
        raise UserError(f"output {str(file.parent)!r}: its {file.name} is damaged; start over with --fresh") from error


def write_log(file: Path, lines: list[dict[str, Any]]) -> None:
    """Write a training log anew, all of it or none."""
    with disk.whole(file) as half:
        half.write_text("".join(json.dumps(line) + "\n" for line in lines))


def whole_checkpoints(work: Path) -> dict[int, Path]:
    """Return the Trainer's checkpoints by step; one without its state, or with half of it, which it writes last, was cut off."""
    found = {}
    for file in work.glob("checkpoint-*/trainer_state.json"):
        with suppress(ValueError):
            disk.json_in(file)
            found[int(file.parent.name.split("-")[1])] = file.parent
    return found
