"""The GPU pair, from nothing to results, as one command that is repeated until it says DONE: python benchmarks/gpu.py [--text TEXT]

Trains recipe gpu's softmax and SSMax models, measures them to 32 times the training length and further, then trains the other
configurations and seeds as far as the time goes, the most telling first. Every call works for --seconds, leaves in $OUT what is
new (weights of the pair, runs, logs: 8 files of 15 MiB at most), and the next one on the same machine goes on, also in the middle
of a training or a grid; a fresh machine trains again. What fails is said and tried again; only without the pair nothing else is
done. Needs torch, transformers, accelerate, msgspec, pandas, seaborn, typer; no network, no lm-eval. --toy rehearses all of it in minutes
on a processor.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carry import collect, pack

from ssmax_eval.training.recipes import recipe

PACKING = 25.0  # seconds kept for it
LEAST = 20.0  # seconds left under which no stage is begun
SMALL = {  # of --toy
    "layers": 2, "hidden": 64, "heads": 2, "feed_forward": 128, "vocabulary": 512, "train_length": 256, "short_length": 64,
    "tokens_per_step": 1024, "steps": 40, "text_characters": 200_000,
}  # fmt: skip
# the pilot: softmax, as many short steps as the recipe has, and some long ones
ARMS: dict[str, dict[str, Any]] = {"qk": {}, "no-qk": {"qk_norm": False}, "qk-lr2": {"learning_rate": 2e-3}}
PILOT = {"steps": 400, "short_share": 0.75}
MARGIN = 0.05  # of recall, by which another arm must lead for the recipe to be left


class Work:
    """A folder of trained models, runs and notes, and the clock of this call."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.folder: Path = given.work
        self.failed: list[str] = []
        self.ends = time.monotonic() + given.seconds - PACKING
        self.toy: bool = given.toy
        self.store, self.models = self.folder / "runs", self.folder / "models"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base = SMALL if self.toy else {}
        self.train_length = int(SMALL["train_length"]) if self.toy else recipe("gpu").train_length

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def read(self, name: str) -> Any:
        file = self.folder / name
        return json.loads(file.read_text()) if file.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Write a note, all of it or none."""
        half = self.folder / f"{name}.half"
        half.write_text(json.dumps(value, indent=1))
        half.replace(self.folder / name)

    def call(self, name: str, *command: object) -> bool:
        """Run a python command to its end, once, its output in a log, and tell whether it came to a good one.

        Raises Late if there is no time left for it.
        """
        done, log = (self.folder / "logs" / f"{name}.{kind}" for kind in ("done", "txt"))
        if done.exists():
            return True
        if self.left < LEAST:
            raise Late
        print(f"[{self.left:5.0f} s left] {name}: {' '.join(map(str, command))}", flush=True)
        log.parent.mkdir(exist_ok=True)
        started = time.monotonic()
        paths = os.pathsep.join(
            filter(None, (".", os.environ.get("PYTHONPATH")))
        )  # what was carried there by hand, too
        environment = {**os.environ, "PYTHONPATH": paths, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("a") as stream:
            arguments = [sys.executable, *map(str, command)]
            process = subprocess.Popen(arguments, stdout=stream, stderr=subprocess.STDOUT, env=environment)
            try:
                code = process.wait(self.left)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # what is scored is stored, and the command says how to go on
                try:
                    process.wait(PACKING / 2)
                except subprocess.TimeoutExpired:
                    process.kill()
                raise Late from None
        print("".join(f"    {line}" for line in log.read_text().splitlines(keepends=True)[-6:]), flush=True)
        print(f"    {'FAILED, ' if code else ''}{time.monotonic() - started:.0f} s", flush=True)
        if code == 0:
            done.touch()
        else:
            self.failed.append(name)
        return code == 0

    def train(self, name: str, attention: str = "softmax", seed: int = 0, late: bool = False, **changes: Any) -> Path:
        """Train a model, or finish it, and return its folder."""
        folder = self.models / name
        if not any(folder.glob("*.safetensors")):  # collected from another machine, without its weights
            (self.folder / "logs" / f"train-{name}.done").unlink(missing_ok=True)
        fields = {**self.base, **changes}
        options = [part for key, value in fields.items() for part in ("--set", f"{key}={str(value).lower()}")]
        swap = ("--swap-to", attention) if late else ()
        text = ("--text", self.given.text) if self.given.text else ()
        law = "softmax" if late else attention
        compiled = ("--compile",) if self.toy and self.given.compile else ()
        trained = self.call(
            f"train-{name}", "-m", "ssmax_eval", "train", "--recipe", "gpu", "--attention", law, *swap, "--seed", seed,
            *text, *options, *compiled, "--out", folder,
        )  # fmt: skip
        if not trained:
            raise Failed(name)
        return folder

    def probe(self, name: str, command: str, *options: object) -> None:
        """Run a probe of ssmax-eval, or finish it."""
        self.call(name, "-m", "ssmax_eval", command, *options, "--no-report", "--output-path", self.store)

    def grid(self, name: str, models: list[Path], *options: object, trials: int = 40) -> None:
        """Run a needle grid from 1 to 32 times the training length, five depths of `trials` prompts each."""
        lengths = [self.train_length * 2**k for k in range(3 if self.toy else 6)]
        labelled = [part for model in models for part in ("--model", f"{model.name}={model}")]
        self.probe(
            name, "needle", *labelled, "--context-lengths", ",".join(map(str, lengths)),
            "--trials", 1 if self.toy else trials, "--task", "single", *options,
        )  # fmt: skip


class Late(Exception):
    """This call's time is over."""


class Failed(Exception):
    """A training failed."""


def stages(work: Work) -> Iterator[str]:
    """Do all the work in its order, the most telling first; yields the name of what is finished."""
    machine(work)
    yield "machine"
    chosen = pilot(work)
    yield "pilot"
    pair = [work.train(f"gpu-{law}-s0", law, **chosen) for law in ("softmax", "ssmax")]
    yield "pair"
    work.grid("needle", pair, trials=work.given.trials)
    yield "needle"
    labelled = [part for model in pair for part in ("--model", f"{model.name}={model}")]
    few = [work.train_length * factor for factor in (1, 2 if work.toy else 8, 4 if work.toy else 16)]
    work.probe(
        "attention", "attention", *labelled, "--context-lengths", ",".join(map(str, few)), "--trials", 1 if work.toy else 8,
        "--task", "single",
    )  # fmt: skip
    yield "attention"
    text = ("--text", work.given.heldout) if work.given.heldout else ()
    work.probe(
        "loss", "loss", *labelled, "--context-length", work.train_length * (4 if work.toy else 20),
        "--documents", 2 if work.toy else 16, "--window", work.train_length // 4, *text,
    )  # fmt: skip
    yield "loss"
    million(work, pair[1])
    yield "million"
    work.grid("controls", pair[:1], "--attention", "ssmax", "--attention", "constant-n")
    work.grid("theta", pair, "--rope-theta-factor", "10,50")
    work.grid("noise", pair, "--haystack", "noise", trials=10)
    yield "controls"
    benchmarks(work, pair)
    yield "benchmarks"
    others: list[tuple[str, list[dict[str, Any]], tuple[str, ...]]] = [
        (
            "rope",
            [{"position": "rope"}, {"position": "rope", "attention": "ssmax"}],
            ("--rope-theta-factor", "1,10,50"),
        ),
        ("seed-1", [{"seed": 1}, {"seed": 1, "attention": "ssmax"}], ()),
        ("late", [{"attention": "ssmax", "late": True}], ()),
        ("bias", [{"attention": "ssmax-bias"}], ()),
        ("fixed", [{"attention": "ssmax-fixed"}], ()),
        ("learned-p", [{"attention": "learned-p"}], ()),
        ("seed-2", [{"seed": 2}, {"seed": 2, "attention": "ssmax"}], ()),
    ]
    for name, models, options in others:
        try:
            made = [work.train(f"{name}-{each.get('attention', 'softmax')}", **{**chosen, **each}) for each in models]
        except Failed:
            continue
        work.grid(name, made, *options, trials=10)
        yield name


def machine(work: Work) -> None:
    """Note what this machine is and the rate of its matrix products."""
    code = (
        "import json, os, torch\n"
        "from ssmax_eval.training.throughput import matmul_rate\n"
        "where = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\n"
        "name = torch.cuda.get_device_name() if where.type == 'cuda' else 'cpu'\n"
        "rate = matmul_rate(where, torch.bfloat16)\n"
        "known = {'device': name, 'cores': os.cpu_count(), 'torch': torch.__version__, 'bf16_matmul_flops_per_second': rate}\n"
        "print(json.dumps(known))"
    )
    work.call("machine", "-c", code)


def pilot(work: Work) -> dict[str, Any]:
    """Return the fields of the recipe that short runs chose: QK-norm, learning rate, and the steps that fit into the time.

    The recipe stays as it is unless another arm's recall, at the end of its pilot, is MARGIN higher.
    """
    if (chosen := work.read("chosen.json")) is not None:
        return dict(chosen)
    short = {**PILOT, "steps": 8} if work.toy else PILOT
    records = {}
    for arm in work.given.arms:
        try:
            folder = work.train(f"pilot-{arm}", **{**short, **ARMS[arm]})
        except Failed:
            continue
        record = json.loads((folder / "training.json").read_text())
        records[arm] = {
            "recall": record["last"]["recall"],
            "text_loss": record["last"]["text_loss"],
            **record["throughput"],
        }
    if not records:
        raise Failed("any arm of the pilot")
    best = max(records, key=lambda arm: records[arm]["recall"] - (MARGIN if arm != "qk" else 0))
    shape = recipe("gpu").changed({key: str(value) for key, value in work.base.items()})
    steps = shape.steps
    if not work.toy and (speed := records[best].get("tokens_per_second")):
        steps = min(steps, int(work.given.training_seconds * speed / shape.tokens_per_step))
    chosen = {**ARMS[best], "steps": steps}
    work.write("pilot.json", {"arms": records, "margin": MARGIN, "best": best})
    work.write("chosen.json", chosen)
    print(json.dumps(records), f"-> {best}, {steps} steps")
    return chosen


def million(work: Work, model: Path) -> None:
    """One needle prompt of 1,048,576 tokens, prefilled in chunks; the run's record has its seconds and peak memory."""
    length, chunk = (16_384, 1024) if work.toy else (2**20, 1024)
    work.probe(
        "million", "attention", "--model", f"{model.name}={model}", "--context-lengths", length, "--depth-percents", "50",
        "--trials", 1, "--task", "single", "--chunk", chunk,
    )  # fmt: skip


def benchmarks(work: Work, pair: list[Path]) -> None:
    """Time the mechanisms, the probes and the training step; each prints ratios taken in its own process."""
    length = 512 if work.toy else 16_384
    for name in ("attention", "needle", "attention_mass"):
        work.call(f"benchmark-{name}", f"benchmarks/{name}.py", pair[0], length)
    work.call("benchmark-training", "benchmarks/training.py", *(["--toy"] if work.toy else []))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="text to train on; default: the recipe's")
    parser.add_argument("--heldout", help="text for the loss; default: generated prose")
    parser.add_argument("--work", type=Path, default=Path("results/gpu"), help="kept between calls")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "results/gpu-out")))
    parser.add_argument("--seconds", type=float, default=560.0, help="of this call")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="of the pilot, the recipe's first"
    )
    parser.add_argument("--training-seconds", type=float, default=150.0, help="of a model, by the pilot's speed")
    parser.add_argument("--trials", type=int, default=40, help="prompts in a cell of the pair's grid")
    parser.add_argument("--toy", action="store_true", help="rehearse at a small size")
    parser.add_argument("--compile", action="store_true", help="with --toy: torch.compile on a processor too")
    parser.add_argument(
        "--collect", type=Path, nargs="+", help="put together what calls left in these folders, and stop"
    )
    work = Work(parser.parse_args())
    if work.given.collect:
        collect(work.folder, work.given.collect)
        return 0
    try:
        for name in stages(work):
            print(f"-- {name}", flush=True)
        if work.failed:
            print(f"FAILED: {', '.join(work.failed)}; all else is finished, and the same command tries them again")
            return 1
        print("DONE: every stage is finished")
        return 0
    except Late:
        print("LATE: the same command goes on")
        return 0
    except Failed as failed:
        print(f"FAILED: without {failed} there is nothing to measure")
        return 1
    finally:
        pack(work.folder, work.given.out)


if __name__ == "__main__":
    sys.exit(main())
