"""Attacks through what a user hands over: files of their own, odd things in a file's place, packs, two processes, limits of the system."""

import json
import os
import random
import resource
import socket
import zipfile
from pathlib import Path
from typing import Any

from .fields import broken, bytes_changed, header_changed, lines_changed, with_wrong
from .trial import PAYLOAD, Attack, Step, rows_in
from .world import GRID, LITTLE, NEEDLE, ONE, REFUSED, STORES, SWEEP, TRAINED, World

DEEP = "[" * 20_000 + "]" * 20_000
MANY = "[" + ", ".join(map(str, range(2000))) + "]"
NINE = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12))
# YAML that grows, turns in circles, or is no map of texts
YAMLS = [
    DEEP, "a: " * 3000, NINE + "{key}: *a11\n", "&a [*a]", "{key}: &a [*a]\n", "&a {{<<: *a}}", "<<: 5\n", "<<: [[1]]\n",
    "{key}: 2001-99-99\n",
    "{key}: !!binary x\n", "{key}: !!python/object/apply:os.mkdir [hacked]\n", "{key}: !!timestamp x\n", "{key}: !!int x\n",
    "{key}: !!set {{a, b}}\n", "? [a]\n: b\n", "? {{a: b}}\n: c\n", "{key}: 1\n{key}: 2\n", "{key}: 0x" + "f" * 5000 + "\n",
    "{key}: 1" + "0" * 5000 + "\n",
    "{key}: .nan\n", "{key}: -.inf\n", "{key}: 1e999\n", "{key}: 190:20:30\n", "{key}: ~\n", "{key}: [~]\n", "{key}: ''\n",
    "{key}: {{a: {{b: c}}}}\n",
    "{key}: \"\\uD800\"\n", "{key}: \"\\x00\"\n", "{key}: *none\n", "--- a\n--- b\n", "%YAML 9.9\n---\n{key}: 1\n", "\ufeff{key}: 1\n",
    "{key}: |\n", "", "\t",
    "{key}: " + json.dumps(PAYLOAD) + "\n", "{key}: " + MANY + "\n", "{key}: [" + "{{a: 1}}, " * 50 + "]\n",
]  # fmt: skip
NEEDLE_KEYS = ["needle", "question", "answer", "keys", "values", "distractors", "language", "implied", "other"]
SWEEP_KEYS = [
    "models", "import", "runs", "probe", "attention", "task", "context_lengths", "depth_percents", "trials", "seed", "dtype", "output_path",
    "report", "tables", "rope_theta_factor", "haystack", "needle_file", "documents", "batch_size", "device", "controls", "limit", "other",
]  # fmt: skip
TEMPLATES = [
    "", "{{", "{% for %}", "{{ messages[9].content }}", "{{ nothing.of.this }}", "{{ raise_exception('no') }}",
    PAYLOAD, "{% include 'x' %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages }}", "{{ 1 / 0 }}", "{{ messages[0].content[::-1] }}", "a" * 10**6,
    "{{ messages[0].content }}" * 3, "{{ messages[0].content | upper }}", "{{ '\ud800' }}".encode("utf-8", "replace").decode(),
]  # fmt: skip


def texts_of(value: Any, name: str, rng: random.Random) -> str:
    """Return a YAML file of a value with wrong fields in it, or what is no such file."""
    import yaml

    keys = {"needle.yaml": NEEDLE_KEYS, "sweep.yaml": SWEEP_KEYS}[name]
    text = yaml.safe_dump(json.loads(json.dumps(value)), allow_unicode=True)
    how = rng.random()
    if how < 0.4:
        return yaml.safe_dump(with_wrong(json.loads(json.dumps(value)), rng))
    key = rng.choice(keys)
    said = (
        rng.choice(YAMLS).format(key=key) if how < 0.9 else bytes_changed(text.encode(), rng).decode(errors="replace")
    )
    if rng.random() < 0.3:  # inside an entry
        said = "runs:\n- probe: needle\n" + "".join(f"  {line}\n" for line in said.splitlines())
    rest = "".join(line for line in text.splitlines(True) if not line.startswith(f"{key}:"))
    return rng.choice([said, said + rest, rest + said])


def inputs(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Break a file of a user's own: a needle, a sweep, a chat template, a mechanism, a function, text, a .gguf file."""
    needle = ["needle", "--model", "ck", *ONE, "--output-path", "out"]
    how = rng.choice(
        [
            "needle.yaml",
            "needle.yaml",
            "sweep.yaml",
            "sweep.yaml",
            "sweep.yaml",
            "chat.jinja",
            "own.py",
            "mine.py",
            "text",
            "gguf",
        ]
    )
    if how == "needle.yaml":
        (folder / how).write_text(texts_of(NEEDLE, how, rng), errors="replace")
        return Attack([Step([rng.choice(["needle", "attention"]), *needle[1:], "--needle-file", how])])
    if how == "sweep.yaml":
        (folder / how).write_text(texts_of(SWEEP, how, rng), errors="replace")
        return Attack([Step(["run", how, *rng.choice([["--dry-run"], [], ["--json"]])])])
    if how == "chat.jinja":
        (folder / how).write_text(rng.choice(TEMPLATES))
        if rng.random() < 0.5:
            (folder / how).rename(folder / "ck" / "chat_template.jinja")
            how = "auto"
        return Attack(
            [Step([*needle, "--chat-template", how, *rng.choice([[], ["--system", PAYLOAD], ["--system", ""]])])]
        )
    if how in ("own.py", "mine.py"):
        text = (folder / how).read_bytes()
        lines = ["raise SystemExit(3)", "import nothing_of_this", "1 / 0", "raise GeneratorExit",
        "x = '\\x1b[31m' * 3; raise ValueError(x)",
                 "import sys; sys.exit('no')", "name = ''", "def answer(): pass", "answer = 5", "raise BaseException('x')",
                 "def answer(a, b): return 5", "def answer(a, b): return '\\ud800'", "def answer(a, b): raise SystemExit(3)",
                 "def answer(a, b): return 'x' * 10**7", "class Own(Mechanism):\n    name = 5\nregister(Own)",
                 "@register\nclass Own2(Mechanism):\n    name = 'own'\n    def weights(self, scores, seen): return scores[0]",
                 "@register\nclass Own2(Mechanism):\n    name = 'a b:,='\n    def weights(self, scores, seen): return scores",
                 "Own.weights = lambda self, scores, seen: scores * float('nan')", "Own.weights = lambda self, scores, seen: None",
                 "Own.weights = lambda self, scores, seen: 1 / 0"]  # fmt: skip
        changed = text + f"\n{rng.choice(lines)}\n".encode() if rng.random() < 0.8 else bytes_changed(text, rng)
        (folder / how).write_bytes(changed)
        words = {
            "own.py": [["mechanisms", "--import", how], [*needle, "--import", how, "--attention", "own"],
                       ["retrofit", "--model", "ck", "--attention", "own", "--import", how, "--out", "made"],
                       ["fading", "--import", how, "--attention", "own"]],
            "mine.py": [["needle", "--model", "mine.py:answer", *needle[3:]]],
        }[how]  # fmt: skip
        return Attack([Step(each) for each in rng.sample(words, min(2, len(words)))])
    if how == "text":
        file = folder / "texts" / rng.choice(["a.txt", "b.txt", "b.gz", "b.xz", "b.bz2", "b.md"])
        broken(file, rng)
        return Attack([Step([*needle, "--haystack", rng.choice(["texts", f"texts/{file.name}"])]),
                       Step(["loss", "--model", "ck", "--context-length", "96", "--documents", "2", "--text", "texts", "--output-path",
                       "out"]),
                       Step([*TRAINED, "made", "--text", "texts"])])  # fmt: skip
    path = folder / "tiny.gguf"
    data = path.read_bytes()
    at = rng.randrange(min(len(data), rng.choice([64, 2000, len(data)])))
    path.write_bytes(rng.choice([data[:at], data[:at] + bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 8])))
                                 + data[at + 8 :], bytes_changed(data, rng)]))  # fmt: skip
    return Attack([Step(["needle", "--model", "tiny.gguf", *needle[3:]]), Step(["models", "."]),
                   Step(["retrofit", "--model", "tiny.gguf", "--out", "made"])])  # fmt: skip


# options that take a path, and words behind which they come; "" stands for an argument
PATHS = [
    ("needle", "--model"), ("needle", "--import"), ("needle", "--output-path"), ("needle", "--tokenizer"), ("needle", "--needle-file"),
    ("needle", "--chat-template"), ("needle", "--haystack"), ("needle", "--report"), ("needle", "--tables"), ("loss", "--text"),
    ("loss", "--key-model"), ("run", ""), ("train", "--text"), ("train", "--start"), ("train", "--out"), ("retrofit", "--model"),
    ("retrofit", "--out"), ("report", ""), ("report", "--out"), ("report", "--figures"), ("report", "--tables"), ("pack", ""),
    ("pack", "--out"), ("models", ""), ("fading", "--figure"), ("reach", "--page"), ("reach", "--output-path"), ("reach", "--figures"),
    ("advise", "--page"), ("advise", "--out"), ("paper", "--out"), ("paper", "--models-path"), ("league", "--models-path"), ("league",
    "--import"),
    ("lm-eval", "--import"), ("advise", "--other-haystack"),
]  # fmt: skip
ENDS = ["", "", ".zip", ".html", ".py", ".yaml", ".gguf", ".txt", ".svg", "/inner", "/inner.html", "/config.json", "#x"]


def place(where: Path, rng: random.Random) -> None:
    """Put something odd there."""
    what = rng.choice(
        ["pipe", "socket", "zero", "full", "loop", "gone", "folder", "file", "binary", "above", "tty", "mem", "long"]
    )
    where.parent.mkdir(parents=True, exist_ok=True)
    if what == "pipe":
        os.mkfifo(where)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(where))
    elif what == "folder":
        where.mkdir()
    elif what in ("file", "binary"):
        where.write_bytes(b"x" if what == "file" else bytes(range(256)))
    elif what != "gone":
        to = {"zero": "/dev/zero", "full": "/dev/full", "loop": where.name, "above": "..", "tty": "/dev/tty", "mem": "/proc/self/mem",
              "long": "x" * 4000}[what]  # fmt: skip
        where.symlink_to(to)


def places(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Give a pipe, a socket, a device, a loop, a folder, nothing, or the place of something else where a path belongs."""
    command, option = rng.choice(PATHS)
    name = f"odd{rng.choice(ENDS)}"
    here = os.getcwd()
    os.chdir(folder)  # a socket's path is short
    try:
        if rng.random() < 0.7:
            place(Path(name.partition("#")[0].partition("/")[0]), rng)
        else:
            name = rng.choice([".", "..", "/", "", "ck", "trained", "ck/config.json", "runs-needle", "texts", "ck/..", "./ck/",
            "pack.zip", "~", "~nobody",
                               "own.py", "/dev/stdin", "/dev/fd/0", "/proc/self/environ", "-", "out/" + "a/" * 100, "a" * 300])  # fmt: skip
            if option in ("--out", "--output-path", "--models-path", "--figures", "--tables") and name in (
                "..",
                "/",
                "~",
                "ck/..",
            ):
                name = "ck"  # what stands there is not the campaign's to write
    finally:
        os.chdir(here)
    words = list(LITTLE[command])
    if option in words:
        words[words.index(option) + 1] = name
    elif option:
        words += [option, name]
    else:
        words = [word for word in words if word not in ("runs-needle", ".")] if command != "run" else ["--dry-run"]
        words.insert(0, name)
    return Attack([Step([command, *words])])


def packs(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Make a pack anew with wrong fields, wrong names, other files, or sizes that are not true, and read it."""
    with zipfile.ZipFile(folder / "pack.zip") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(held))
    how = rng.random()
    if how < 0.5:
        text = held[name].decode()
        held[name] = (
            lines_changed(text, rng) if name.endswith("l") else json.dumps(with_wrong(json.loads(text), rng))
        ).encode()
    elif how < 0.6:
        del held[name]
    elif how < 0.9:
        new = rng.choice(["../../out/rows.jsonl", "/tmp/rows.jsonl", PAYLOAD + "/x/run.json", "needle/../x/run.json",
        "a" * 300 + "/b/run.json",
                          "needle/x/run.json", "needle/x/rows.jsonl", "loss/abc/run.json", "\\x\\run.json",
                          "needle//rows.jsonl"])  # fmt: skip
        held[new] = held.pop(name) if rng.random() < 0.5 else held[name]
    kind = rng.choice([zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2])
    with zipfile.ZipFile(folder / "odd.zip", "w", kind) as archive:
        for each, content in held.items():
            archive.writestr(each, content)
        if how > 0.9:
            archive.writestr(name.replace("/", "/x", 1), b" " * rng.choice([10**6, 10**8]))
    if rng.random() < 0.2:
        data = bytearray((folder / "odd.zip").read_bytes())
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (folder / "odd.zip").write_bytes(data)
    words = [["report", "odd.zip"], ["report", "."], ["report", "odd.zip", "--tables", "made"], ["pack", "odd.zip", "--out", "made.zip"],
             ["report", "odd.zip", "pack.zip", "runs-loss"]]  # fmt: skip
    return Attack([Step(each) for each in rng.sample(words, 2)])


def together(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Begin one command twice or three times at once: each ends well or in a line; then it goes on as if nothing had been."""
    name = rng.choice([*STORES, "train", "retrofit", "pack", "report"])
    if name in STORES:
        words = STORES[name]
    else:
        words = {"train": [*TRAINED, "made"], "retrofit": ["retrofit", "--model", "ck", "--attention", "ssmax", "--out", "made"],
                 "pack": ["pack", "runs-needle", "--out", "made.zip"], "report": ["report", "runs-needle", "--out",
                 "made.html"]}[name]  # fmt: skip
    count = rng.choice([2, 2, 3])
    begun = [Step(words) for _ in range(count)]
    if rng.random() < 0.3:
        begun[0] = Step(words, stop=(rng.choice([2, 9, 15]), rng.uniform(0, 1.5)))  # type: ignore[arg-type]
    last = [] if name == "retrofit" else [Step(words, must=0)]

    def after(here: Path) -> str | None:
        if name in STORES and rows_in(here / "out") != world.rows[name]:
            return f"{name}: rows lost, doubled or changed by {count} at once"
        if (
            name == "train"
            and (here / "made" / "model.safetensors").read_bytes()
            != (here / "trained" / "model.safetensors").read_bytes()
        ):
            return f"other weights by {count} at once"
        left = sorted(
            str(each.relative_to(here)) for each in here.rglob(".*") if each.name.startswith((".lock", ".ssmax-half"))
        )
        return f"{left} left behind" if left and not begun[0].stop else None

    return Attack([*begun, *last], after, at_once=count)


def systems(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Run a command where the system allows few files, little memory or processes, or in a folder that is gone."""
    command = rng.choice(
        ["needle", "loss", "report", "models", "retrofit", "pack", "train", "reach", "run", "mechanisms", *REFUSED]
    )
    limits = rng.choice([{resource.RLIMIT_NOFILE: rng.choice([4, 8, 12, 16, 24, 40])}, {resource.RLIMIT_NPROC: 0},
                         {resource.RLIMIT_AS: rng.choice([5, 6, 8]) * 2**30}, {resource.RLIMIT_CORE: 0}, {}])  # fmt: skip
    return Attack([Step([command, *LITTLE[command]], limits=limits, gone=not limits)])


def headers(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Break an adapter, an index or a shard of a model that has several files, and read it in every way."""
    model = folder / rng.choice(["sharded", "adapted"])
    file = rng.choice(sorted(file for file in model.iterdir() if "model" in file.name or "config" in file.name))
    if file.name.endswith(".index.json") and rng.random() < 0.6:
        index = json.loads(file.read_text())
        key = rng.choice(sorted(index["weight_map"]))
        index["weight_map"][key] = rng.choice(["../ck/model.safetensors", "../../x.safetensors", "/etc/passwd", "", ".", "x.bin",
        5, None, [],
                                               "model.safetensors", "nothing.safetensors", "a\x00b.safetensors",
                                               PAYLOAD + ".safetensors"])  # fmt: skip
        index = rng.choice(
            [index, index, {"weight_map": index["weight_map"]}, [index], {"weight_map": [*index["weight_map"]]}]
        )
        file.write_text(json.dumps(index))
    elif file.suffix == ".safetensors" and rng.random() < 0.5:
        file.write_bytes(header_changed(file.read_bytes(), rng))
    else:
        broken(file, rng)
    name = model.name
    words = [["needle", "--model", name, *GRID[:2], "--depth-percents", "0", "--trials", "1", "--output-path", "out"], ["models", "."],
             ["retrofit", "--model", name, "--attention", "ssmax", "--out", "made"], ["loss", "--model", name, "--dry-run"],
             ["reach", "--model", name, *LITTLE["reach"][2:]]]  # fmt: skip
    return Attack([Step(each) for each in rng.sample(words, 2)])
