"""Wrong values in stored and foreign files: of JSON any field, of the rest any bytes, or no file at all."""

import json
import os
import random
from pathlib import Path
from typing import Any

from .trial import PAYLOAD

# every file that a command reads of what others, or an earlier command, wrote
MODEL_FILES = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "training.json",
    "accuracy.json", "training_log.jsonl", "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors",
    "special_tokens_map.json", "added_tokens.json", "README.md", "modeling_ssmax.py", "chat_template.jinja",
]  # fmt: skip
WRONG: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 10**9, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"), "", "x", "0",
    "nan", "../x", "/dev/zero", "a\x00b", PAYLOAD, "x" * 5000, "\ud800", [], {}, [None], [[]], {"": None}, [10**9], {"a": {"b": 1}},
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to every value inside a JSON value, at most a few of a long list."""
    inner: list[tuple[Any, ...]] = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    for key, each in items:
        inner += places(each, (*at, key))
    return inner


def with_wrong(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one to three wrong fields: another value, none, one too many."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        if not (found := places(value)):
            return rng.choice(WRONG)
        *path, last = rng.choice(found)
        holder = value
        for key in path:
            holder = holder[key]
        how = rng.random()
        if how < 0.15:
            del holder[last]
        elif how < 0.3 and isinstance(holder, dict):
            holder[rng.choice(["extra", "auto_map", "ssmax", "rope_scaling", PAYLOAD, ""])] = rng.choice(WRONG)
        else:
            holder[last] = rng.choice(WRONG)
    return value


def lines_changed(text: str, rng: random.Random) -> str:
    """Return lines of JSON with wrong fields in one of them, or one line gone, twice, or cut."""
    lines = text.splitlines()
    if not lines:
        return "[]\n"
    i = rng.randrange(len(lines))
    how = rng.random()
    if how < 0.7:
        lines[i] = json.dumps(with_wrong(json.loads(lines[i]), rng))
    elif how < 0.8:
        lines.insert(i, lines[i])
    elif how < 0.9:
        del lines[i]
    else:
        lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
    return "".join(f"{line}\n" for line in lines)


def header_changed(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with wrong fields in its header, its length of it wrong, or no weights behind it."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data):
        return data[: len(data) // 2]
    how, header = rng.random(), data[8 : 8 + length]
    if how < 0.6:
        header = json.dumps(with_wrong(json.loads(header), rng)).encode()
    elif how < 0.8:
        return rng.choice([0, 1, 2**63, len(data), 10**8]).to_bytes(8, "little") + data[8:]
    rest = data[8 + length :] if how < 0.9 else b""
    return len(header).to_bytes(8, "little") + header + rest


def broken(path: Path, rng: random.Random) -> None:
    """Break a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path) and not path.is_file():  # broken already
        return
    data = path.read_bytes() if path.is_file() else b"{}"
    how = rng.random()
    if how < 0.7:
        try:
            if path.suffix == ".safetensors":
                data = header_changed(data, rng)
            elif path.suffix == ".jsonl":
                data = lines_changed(data.decode(), rng).encode()
            elif path.suffix == ".json":
                data = json.dumps(with_wrong(json.loads(data), rng)).encode()
            else:
                raise ValueError("of no known form")
        except (ValueError, UnicodeError):
            data = bytes_changed(data, rng)
    elif how < 0.85:
        data = bytes_changed(data, rng)
    else:
        path.unlink(missing_ok=True)
        what = rng.choice(["nothing", "pipe", "folder", "loop", "elsewhere"])
        if what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what == "loop":
            path.symlink_to(path)
        elif what == "elsewhere":
            path.symlink_to("/dev/zero")
        return
    path.write_bytes(data)


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    """Return bytes cut, flipped, with rubbish inside, or replaced by what is no text or nested too deep."""
    at = rng.randrange(len(data) + 1)
    return rng.choice(
        [
            data[:at],
            b"",
            data[:at] + bytes(rng.randrange(256) for _ in range(20)) + data[at:],
            data[:at] + b"\x00" + data[at + 1 :],
            b"\xff\xfe" + data,
            b"[" * 50_000 + b"]" * 50_000,
            b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            b"null",
            b"[]",
        ]
    )
