"""Every value of every file that a command reads, wrong in each kind of way, one at a time: what a random campaign meets by chance."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from .fields import places
from .trial import Step, run, wrong
from .world import NO_PAGE, ONE, STORES, TRAINED, World

GONE = object()
# one of each kind that JSON has, numbers that are none or too large, half a character
KINDS: list[Any] = [GONE, None, -1, 10**30, float("nan"), "x", "\ud800", [None], {"a": {"b": 1}}]
MADE = ("out", "made", "page.html")  # by the commands
MODELS = ["models", "."]
FEW = 80  # of one holder: more than any has whose keys are names
# what a world has not
ACCURACY = {"context_lengths": [256, 512], "times": [1.0, 2.0], "accuracy": [1.0, 0.5]}


def read_by(world: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each file of a world that others could have written, and commands that read it."""

    def needle(model: str) -> list[str]:
        return ["needle", "--model", model, *ONE, "--output-path", "out"]

    start = [*TRAINED[:1], "--start", "ck", *TRAINED[1:], "made"]
    for name in ("config", "generation_config", "tokenizer_config", "tokenizer"):
        yield f"ck/{name}.json", [needle("ck"), MODELS, *([start] if name == "config" else [])]
    yield "ck/model.safetensors", [needle("ck"), MODELS]
    yield "sharded/model.safetensors.index.json", [needle("sharded"), MODELS]
    yield "adapted/adapter_config.json", [needle("adapted")]
    yield "adapted/adapter_model.safetensors", [needle("adapted")]
    for name in ("training", "accuracy", "config"):
        again = [[*TRAINED, "trained"]] if name == "training" else []
        yield f"trained/{name}.json", [needle("trained"), [*MODELS, "--json"], *again]
    yield "trained/training_log.jsonl", [needle("trained")]
    for name in ("needle", "attention", "loss", "reach"):  # run and sweep store the same
        words = STORES[name]
        again = [word if word != "out" else f"runs-{name}" for word in words] + NO_PAGE * (name != "reach")
        for file in sorted((world / f"runs-{name}").rglob("*.json*")):
            yield str(file.relative_to(world)), [["report", f"runs-{name}", "--out", "page.html"], again]
    for file in sorted((world / "lm").glob("*.json*")):
        yield str(file.relative_to(world)), [["report", "lm", "--out", "page.html"]]


def held(data: bytes, suffix: str) -> Any:
    """Return what a file of JSON holds; of lines the first, of weights the header."""
    if suffix == ".safetensors":
        return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(data.splitlines()[0] if suffix == ".jsonl" else data)


def holding(data: bytes, suffix: str, value: Any) -> bytes:
    """Return a file's content with another value in the place of `held`."""
    text = json.dumps(value).encode()
    if suffix == ".safetensors":
        return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]
    return b"\n".join([text, *data.splitlines()[1:], b""]) if suffix == ".jsonl" else text


def with_kind(data: bytes, suffix: str, place: tuple[Any, ...], kind: Any) -> bytes:
    """Return a file's content with a value of a kind at a place."""
    top = [held(data, suffix)]
    holder: Any = top
    *path, last = (0, *place)
    for key in path:
        holder = holder[key]
    if kind is GONE:
        del holder[last]
    else:
        holder[last] = kind
    return holding(data, suffix, top[0]) if top else b""


def some(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the top and those of the places that are among the first in their holder: of a vocabulary a few tell of all."""
    met: Counter[tuple[Any, ...]] = Counter()
    out: list[tuple[Any, ...]] = [()]
    for place in found:
        met[place[:-1]] += 1
        if met[place[:-1]] <= FEW:
            out.append(place)
    return out


def every(world: World, files: str = "", share: int = 1) -> list[str]:
    """Try every value of the files whose path holds a text, or one of so many, and return what is wrong, a line each."""
    lines: list[str] = []
    tried = number = 0
    began = time.monotonic()
    folder = world.copy(world.folder.parent / "trial")
    for file, commands in [each for each in read_by(world.folder) if files in each[0]]:
        there, suffix = world.folder / file, Path(file).suffix
        data = there.read_bytes() if there.is_file() else json.dumps(ACCURACY).encode()
        before = tried, len(lines)
        for place, kind in product(some(places(held(data, suffix))), KINDS):
            number += 1
            if number % share:
                continue
            (folder / file).write_bytes(with_kind(data, suffix, place, kind))
            for words in commands:
                tried += 1
                if found := wrong(Step(words), run(Step(words), folder, False)):
                    lines.append(f"{file} {place} {'gone' if kind is GONE else repr(kind)}: {found} ({words[0]})")
                    print(ascii(lines[-1])[1:-1], flush=True)
            restore(world.folder, folder, Path(file).parts[0])
        print(f"{file}: tried {tried - before[0]}, failed {len(lines) - before[1]}", flush=True)
    print(f"every value: tried {tried}, failed {len(lines)}, {time.monotonic() - began:.0f} s")
    return lines


def restore(world: Path, folder: Path, top: str) -> None:
    """Bring a folder of a trial's copy back, and take away what commands made."""
    for name in (*MADE, top):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    shutil.copytree(world / top, folder / top)
