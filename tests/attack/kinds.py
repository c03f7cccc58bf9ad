"""What attacks there are, each drawn by a generator of its own: a world's copy is changed, and steps are returned."""

import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .fields import MODEL_FILES, broken
from .inputs import headers, inputs, packs, places, systems, together
from .trial import PAYLOAD, SIGNALS, Attack, Step, rows_in
from .world import GRID, LITTLE, NO_PAGE, NOWHERE, ONE, STORES, TRAINED, World

Draw = Callable[[World, random.Random, Path, bool], Attack]
BAD = ["", "-1", "0", "1", "nan", "inf", "-inf", "1e999", "x", "1,2,", ",", "0x10", "1_0", "٣", "-", " ", "\t", "\u202e96", PAYLOAD,
       "a" * 5000, "../..", "/dev/null", "/dev/zero", "ck", "96", "true", "10" + "0" * 30, "=", ":", "ssmax:s=nan", "[1]", "{}",
       "hf:", "http://[", "ck=ck", "/proc/self/mem", "softmax,ssmax"]  # fmt: skip
PLAN = ["--dry-run"]


@functools.cache
def options_of(command: str) -> list[str]:
    """Return the options that a command takes."""
    import typer

    from ssmax_eval.cli import app

    found = typer.main.get_command(app).commands[command]
    return sorted(
        option for each in found.params for option in [*each.opts, *each.secondary_opts] if option.startswith("--")
    )


def kills(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Stop a command that stores rows, some times over, then let it end: the rows are those of one that nobody disturbed."""
    name = rng.choice([*STORES])
    begins = 4.0 if through_cli else 0.0  # of its imports
    steps = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.uniform(0, begins + 1.2)
        steps.append(Step([*STORES[name], *NO_PAGE * (name != "reach")], stop=(rng.choice(SIGNALS), at)))
    steps.append(Step(STORES[name], must=0))

    def after(here: Path) -> str | None:
        found = rows_in(here / "out")
        return (
            None
            if found == world.rows[name]
            else f"{name}: rows lost, doubled or changed after {[s.stop for s in steps]}"
        )

    return Attack(steps, after)


def training(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Stop a training, then let it end: the same weights as undisturbed, and nothing of the way left."""
    words = [*TRAINED, "out"]
    begins = 4.0 if through_cli else 0.0
    steps = [Step(words, stop=(rng.choice(SIGNALS), rng.uniform(0, begins + 2))) for _ in range(rng.choice([1, 2]))]
    steps.append(Step(words, must=0))

    def after(here: Path) -> str | None:
        same = (here / "out" / "model.safetensors").read_bytes() == (
            here / "trained" / "model.safetensors"
        ).read_bytes()
        left = sorted(
            {file.name for file in (here / "out").iterdir()} - {file.name for file in (here / "trained").iterdir()}
        )
        return "other weights than undisturbed" if not same else f"{left} left behind" if left else None

    return Attack(steps, after)


def fields(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Break a file, or two, of a model, a run, a pack or what lm-eval wrote; then read it in every way."""
    what = rng.choice(["model", "model", "runs", "runs", "pack", "lm", "trained"])
    for _ in range(rng.choice([1, 1, 2])):
        if what in ("model", "trained"):
            holder = {"model": "ck", "trained": "trained"}[what]
            held = [file.name for file in (folder / holder).iterdir() if not file.name.startswith(".")]
            broken(folder / holder / rng.choice([*held, *held, *MODEL_FILES]), rng)
        elif what == "runs":
            broken(rng.choice(sorted(folder.glob("runs-*/*/*/*.json*"))), rng)
        else:
            broken(rng.choice([folder / "pack.zip"] if what == "pack" else sorted((folder / "lm").iterdir())), rng)
    needle = ["needle", "--model", "ck", *ONE, "--output-path", "out"]
    words = {
        "model": [needle, [*needle, "--trust-remote-code"], ["models", "."],
                  ["retrofit", "--model", "ck", "--attention", "ssmax", "--out", "made"], ["loss", "--model", "ck", "--dry-run"],
                  [*TRAINED[:1], "--start", "ck", *TRAINED[1:], "made"]],
        "trained": [[*TRAINED, "trained"], ["models", ".", "--json"], ["needle", "--model", "trained", *ONE]],
        "runs": [["report", "."], [*STORES["needle"][:4], "runs-needle", *GRID], ["pack", "runs-needle", "--out", "made.zip"],
                 ["report", "runs-attention", "--tables", "made"],
                 [*STORES["reach"][:4], "runs-reach", *STORES["reach"][5:]]],
        "pack": [["report", "pack.zip"], ["report", "."], ["pack", "pack.zip", "--out", "made.zip"]],
        "lm": [["report", "lm"], ["report", "."]],
    }[what]  # fmt: skip
    return Attack([Step(each) for each in rng.sample(words, min(2, len(words)))])


def options(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Give a command options that it has, or nearly has, with bad values, or leave some out."""
    command = rng.choice([*LITTLE])
    words = list(LITTLE[command])
    if command in (*STORES, "needed-scale") and rng.random() < 0.5:
        words += PLAN
    for _ in range(rng.choice([1, 1, 2, 3])):
        option = rng.choice(options_of(command) or ["--nothing"])
        if rng.random() < 0.1:
            option = option[:-1]
        if option in words and rng.random() < 0.7:
            at, bad = words.index(option) + 1, rng.choice(BAD)
            if words[at : at + 1] != [NOWHERE]:  # which keeps a study of many trainings from its minutes of work
                words[at : at + 1] = [bad]
        else:
            words.append(option)
            if rng.random() < 0.8:
                words.append(rng.choice(BAD))
    if rng.random() < 0.1:
        rng.shuffle(words)
    if {"--fresh", "--out", "."} >= {*words[-3:]}:
        words.append("out")
    return Attack([Step([command, *words])])


ENVIRONMENT: dict[str, list[str]] = {
    "LANG": ["C", "tr_TR.UTF-8", "xx"], "LC_ALL": ["C", "POSIX", "xx.y"], "PYTHONUTF8": ["0", "1"],
    "PYTHONIOENCODING": ["ascii", "latin-1", "utf-16", "utf-8:strict"], "PYTHONOPTIMIZE": ["1", "2"], "PYTHONCOERCECLOCALE": ["0"],
    "COLUMNS": ["0", "-1", "1", "x", "100000", "20"], "LINES": ["0", "x"], "TERM": ["dumb", "", "x"], "NO_COLOR": ["1"],
    "FORCE_COLOR": ["1"], "HOME": ["", "/nowhere", "/dev/null", "."], "TMPDIR": ["/nowhere", "/dev/null", "."],
    "HF_HOME": ["/dev/null", "."],
    "RANK": ["x", "-1", "5", ""], "WORLD_SIZE": ["x", "0", "-1", "1", ""], "LOCAL_RANK": ["x", "9"], "SLURM_PROCID": ["x", "0"],
    "SLURM_NTASKS": ["x", "0"], "OMP_NUM_THREADS": ["0", "x", "1"], "CUDA_VISIBLE_DEVICES": ["x", "7", ""], "MPLBACKEND": ["nothing"],
    "MPLCONFIGDIR": ["/dev/null", "/nowhere"], "TQDM_DISABLE": ["x", "0", ""], "XDG_CACHE_HOME": ["/dev/null"],
    "PYTHONHASHSEED": ["0", "7"],
    "PYTHONWARNINGS": ["default", "ignore"], "TORCH_LOGS": ["x"], "TRANSFORMERS_VERBOSITY": ["x", "debug"],
    "PYTHONDONTWRITEBYTECODE": ["1"],
    "OMPI_COMM_WORLD_SIZE": ["2", "x"], "PMI_SIZE": ["2", "1"], "MASTER_ADDR": ["nowhere", ""],
    "ACCELERATE_DYNAMO_BACKEND": ["x"], "ACCELERATE_USE_DEEPSPEED": ["true"], "ACCELERATE_USE_CPU": ["x", "true"],
    "ACCELERATE_MIXED_PRECISION": ["x", "fp8"], "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ["x"],
    "HF_HUB_OFFLINE": ["1", "x"], "TOKENIZERS_PARALLELISM": ["x", "true"], "PYTHONFAULTHANDLER": ["1"], "PYTHONSAFEPATH": ["1"],
}  # fmt: skip


def environments(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Run a command in an odd environment: its variables, streams that are closed or full, a folder that is gone."""
    command = rng.choice(
        ["needle", "loss", "report", "models", "mechanisms", "recipes", "fading", "retrofit", "pack", "train"]
    )
    env = {name: rng.choice(ENVIRONMENT[name]) for name in rng.sample([*ENVIRONMENT], rng.choice([1, 2, 3, 5]))}
    words = [command, *LITTLE[command]]
    if rng.random() < 0.2:
        words = [command, "--help"]
    streams = rng.choice([(), (), (), (0,), (1,), (2,), (1, 2), (0, 1, 2)])
    stdout = rng.choice([None, None, None, "/dev/full", "/dev/null"])
    return Attack([Step(words, env=env, closed=streams, stdout=stdout)])


def controls(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Bring control characters and markup in by every way: names, files, rows, code, options."""
    name = "odd" + PAYLOAD.replace("/", "").replace("\x00", "")
    how = rng.choice(
        [
            "model",
            "label",
            "text",
            "row",
            "record",
            "config",
            "card",
            "mechanism",
            "function",
            "raises",
            "title",
            "option",
        ]
    )
    one = ["needle", *ONE, "--output-path", "out", "--model"]
    report = Step(["report", "out", "--out", "page.html"])
    if how == "model":
        (folder / "ck").rename(folder / name)
        return Attack(
            [
                Step([*one, name]),
                report,
                Step(["models", "."]),
                Step(["retrofit", "--model", name, "--out", f"{name}2"]),
            ]
        )
    if how == "label":
        return Attack([Step([*one, f"{name}=ck"])])
    if how == "text":
        (folder / "texts" / "a.txt").rename(folder / "texts" / f"{name}.txt")
        (folder / "texts").rename(folder / f"{name}s")
        (folder / f"{name}s" / "b.txt").write_text(f"He said {PAYLOAD} again. " * 300)
        loss = [
            "loss",
            "--model",
            "ck",
            "--context-length",
            "96",
            "--documents",
            "2",
            "--text",
            f"{name}s",
            "--output-path",
            "out",
        ]
        return Attack([Step([*one, "ck", "--haystack", f"{name}s"]), Step(loss), report])
    if how in ("row", "record"):
        file = next((folder / "runs-needle").rglob("rows.jsonl" if how == "row" else "run.json"))
        text, old = (
            file.read_text(),
            rng.choice(["ck", "text", "number", "single", "llama", "LlamaForCausalLM", "as trained", "softmax"]),
        )
        for each in file.parent.glob("*.json*"):
            escaped = "".join(f"\\u{ord(sign):04x}" for sign in PAYLOAD)
            each.write_text(each.read_text().replace(f'"{old}"', f'"{escaped}"'))
        assert text
        return Attack([Step(["report", "runs-needle"]), Step(["report", "runs-needle", "--tables", "made"])])
    if how == "config":
        file = folder / "ck" / rng.choice(["config.json", "tokenizer_config.json", "tokenizer.json"])
        old = rng.choice(
            [
                "llama",
                "LlamaForCausalLM",
                "float32",
                "silu",
                "</s>",
                "default",
                "PreTrainedTokenizerFast",
                "the",
                "Ġthe",
            ]
        )
        escaped = "".join(f"\\u{ord(sign):04x}" for sign in PAYLOAD)
        file.write_text(file.read_text().replace(f'"{old}"', f'"{escaped}"'))
        return Attack([Step([*one, "ck"]), Step(["models", "."])])
    if how == "card":
        (folder / "ck" / "README.md").write_text(f"---\nlicense: {PAYLOAD}\n---\n")
        (folder / "ck" / "accuracy.json").write_text(f'{{"context_lengths": ["{"x" * 9}"], "accuracy": 3}}')
        return Attack([Step(["models", "."]), Step(["models", ".", "--json"])])
    if how == "mechanism":
        told = (folder / "own.py").read_text()
        old = rng.choice(['name = "own"', '"weights = softmax"'])
        (folder / "own.py").write_text(told.replace(old, old[:-1] + PAYLOAD.encode("unicode_escape").decode() + '"'))
        return Attack(
            [
                Step(["mechanisms", "--import", "own.py"]),
                Step([*one, "ck", "--import", "own.py", "--attention", "own"]),
                report,
            ]
        )
    if how in ("function", "raises"):
        said = PAYLOAD.encode("unicode_escape").decode()
        ends = f"    return '{said}'" if how == "function" else f"    raise ValueError('{said}')"
        (folder / "mine.py").write_text(f"def answer(context, question):\n{ends}\n")
        return Attack([Step([*one, "mine.py:answer"]), report])
    if how == "title":
        return Attack([Step(["report", "runs-needle", "--title", PAYLOAD, "--out", "page.html"])])
    return Attack(
        [Step([rng.choice([*LITTLE]), rng.choice(["--model", "--attention", PAYLOAD, f"--{PAYLOAD}"]), PAYLOAD])]
    )


def disks(world: World, rng: random.Random, folder: Path, through_cli: bool) -> Attack:
    """Let no file grow beyond some bytes, or no output be written at all; then, with room, it ends as if nothing had been."""
    name = rng.choice([*STORES])
    full = Step(STORES[name], largest=rng.choice([0, 1, 100, 1000, 5000, 20_000, rng.randrange(100_000)]))
    if rng.random() < 0.3:
        (folder / "out").touch() if rng.random() < 0.5 else os.mkfifo(folder / "out")
        return Attack(
            [Step(STORES[name]), Step(["report", "runs-needle", "--out", "out/page.html"]), Step(["models", "out"])]
        )
    if rng.random() < 0.3:
        words = rng.choice([["retrofit", "--model", "ck", "--attention", "ssmax", "--out", "made"],
                            ["pack", "runs-needle", "--out", "made.zip"], ["report", "runs-needle", "--out", "made.html"],
                            [*TRAINED, "made"], ["fading", "--figure", "made.svg"]])  # fmt: skip
        return Attack([Step(words, largest=full.largest), Step(words, must=0)])

    def after(here: Path) -> str | None:
        return (
            None
            if rows_in(here / "out") == world.rows[name]
            else f"{name}: rows lost or changed after {full.largest} bytes"
        )

    return Attack([full, Step(STORES[name], must=0)], after)


KINDS: dict[str, Any] = {
    each.__name__: each
    for each in (
        *(kills, training, fields, options, environments, controls, disks),
        *(inputs, places, packs, together, systems, headers),
    )
}  # fmt: skip
