"""Carry a folder of work off a lent machine in few files of limited size, and put it together again: for gpu.py."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

SENT = "sent.json"  # what calls before this one left: file to hash of its content
FILES, FILE_BYTES, ALL_BYTES = 8, 15 * 2**20, 60 * 2**20  # what one call may leave in $OUT
PLAIN_BYTES = 64 * 2**20  # of notes in an archive, before they are compressed to a tenth of it


def pack(folder: Path, out: Path) -> None:
    """Leave in `out` what no call before left there: first the notes, logs and runs, then the weights of the pair."""
    out.mkdir(parents=True, exist_ok=True)
    record = folder / SENT
    sent: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    call = int(sent.get("calls", "0"))
    room, files = ALL_BYTES, FILES
    notes = [file for file in sorted(folder.rglob("*")) if file.is_file() and is_note(file)]
    new = {str(file.relative_to(folder)): file.read_bytes() for file in notes}
    new = {name: content for name, content in new.items() if sent.get(name) != digest(content)}
    part = 0
    while new and files:
        # as many as surely fit, compressed or not; a single one that is larger goes alone
        chosen: dict[str, bytes] = {}
        for name, content in new.items():
            if chosen and sum(map(len, chosen.values())) + len(content) > PLAIN_BYTES:
                break
            chosen[name] = content
        archive = out / f"notes-{call:03}-{part:02}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, content in chosen.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        size = archive.stat().st_size
        if size > min(FILE_BYTES, room):
            print(f"{archive.name} is too large to come back: {size:,} bytes; it waits for the next call")
            archive.unlink()
            break
        sent |= {name: digest(content) for name, content in chosen.items()}
        new = {name: content for name, content in new.items() if name not in chosen}
        room, files, part = room - size, files - 1, part + 1
    for shard in sorted((folder / "models").glob("gpu-s*max-s0/*.safetensors")):
        name, size = f"{shard.parent.name}.{shard.name}", shard.stat().st_size
        if name in sent or not (folder / "logs" / f"train-{shard.parent.name}.done").exists():
            continue
        if files == 0 or size > room:
            print(f"{name} waits for the next call")
            continue
        (out / name).write_bytes(shard.read_bytes())
        sent[name] = "whole"
        room, files = room - size, files - 1
    half = record.with_suffix(".half")
    half.write_text(json.dumps(sent | {"calls": str(call + 1)}))
    half.replace(record)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def collect(folder: Path, outs: list[Path]) -> None:
    """Put what the calls left behind back into the folder of work: models that open, and runs."""
    archives = [archive for out in outs for archive in out.glob("notes-*.tar.gz")]
    for archive in sorted(archives, key=lambda each: each.name):  # the later call's files over the earlier one's
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    for shard in (shard for out in outs for shard in out.glob("*.safetensors")):
        model, _, name = shard.name.partition(".")
        (folder / "models" / model).mkdir(parents=True, exist_ok=True)
        (folder / "models" / model / name).write_bytes(shard.read_bytes())


def is_note(file: Path) -> bool:
    """Tell whether a file comes back: all but weights, and what a training keeps on its way."""
    return file.suffix not in (".safetensors", ".half") and "checkpoints" not in file.parts and file.name != SENT
