"""What a page of many rows costs: CPU seconds by phase, peak memory, size of the page.

usage: python benchmarks/report_size.py [KIND:]ROWS ...    (default: 84000 masses:84000 text:84000)
Ten models are asked the same prompts of plan 2, 20 lengths by 21 depths and as many trials as give about ROWS rows. KIND: `made`
(the default), a text made for each trial; `text`, stretches of one text, so that trials overlap; `masses`, `made` with the
attention masses of 6 layers by 4 heads. Each page is made in a process of its own, on one thread.
"""

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from ssmax_eval.store import Run

MODELS = [f"model-{number}-{attention}" for number in range(5) for attention in ("softmax", "ssmax")]
LENGTHS = [256 * (number + 1) for number in range(20)]
DEPTHS = [5.0 * number for number in range(21)]
CITIES = "Boston Kingston Lima Rome Oslo Cairo Quito Perth Lagos Turin Delhi Seoul".split()
LAYERS, HEADS = 6, 4
SENTENCES = 200  # of the text that stretches are taken of, for each trial
KINDS = ("made", "text", "masses")
# whose seconds are told apart, by the module that a function stands in
PHASES = {
    "ssmax_eval.results": "read", "ssmax_eval.store": "read", "ssmax_eval.rows": "read",
    "ssmax_eval.statistics": "statistics", "ssmax_eval.verdict": "statistics",
    "ssmax_eval.report.figures": "figures", "ssmax_eval.report": "page", "ssmax_eval.probes": "page",
}  # fmt: skip
# too quick to be told apart; and what lets go of rows that a timer around it would hold
UNTOLD = {
    "colour", "ink", "key_of", "belongs", "plain", "reached", "face", "percent", "short", "where", "answer", "mass_at", "report",
    "series_of", "found_in", "rows_of", "read", "column",
}  # fmt: skip


def rows(model: str, kind: str, trials: int) -> Iterator[dict[str, Any]]:
    """Yield a model's rows, with the fields that needle.py and answers.py write."""
    own = random.Random(model)
    far = 2000 + 4000 * own.random()  # tokens at which half is found
    haystacks = random.Random(0)
    starts = [haystacks.randrange(SENTENCES * trials) for _ in range(trials)]
    luck = [haystacks.gauss(0, 0.15) for _ in range(trials)]
    for length in LENGTHS:
        for depth in DEPTHS:
            for trial in range(trials):
                shared = random.Random(f"{length}/{depth}/{trial}")
                city, expected = shared.choice(CITIES), str(shared.randrange(10**6, 10**7))
                correct = own.random() < 1 / (1 + (length / far) ** 3) + luck[trial]
                wrong = None if correct else own.randrange(7)
                ranks = [0 if wrong is None or i < wrong else own.randrange(1, 400) for i in range(7)]
                predicted = [
                    str(own.randrange(10)) if rank else token for token, rank in zip(expected, ranks, strict=True)
                ]
                question = f"What is the special magic {city} number? The special magic {city} number is:"
                at = int(depth / 100 * (length - 60))
                yield {
                    "model": model, "fingerprint": hashlib.sha256(model.encode()).hexdigest()[:16], "dtype": "bfloat16",
                    "attention": model.rpartition("-")[2], "attention_swapped": False, "rope": "as trained",
                    "rope_theta": None, "rope_theta_factor": 1.0, "rope_scaling": None,
                    "sample": f"grid/{length}/{depth:g}/{trial}", "task": "single", "value": "number", "needles": 1,
                    "haystack": "novel.txt" if kind == "text" else "text", "scoring": "forced", "control": None,
                    "context_length": length, "depth_percent": depth, "realised_depth_percent": 100 * at / (length - 60),
                    "trial": trial, "plan": 2, "seed": 0, "needle": f"The special magic {city} number is: {expected}.",
                    "question": question, "expected": expected, "predicted": "".join(predicted),
                    "predicted_tokens": predicted, "expected_tokens": list(expected), "correct": correct,
                    "first_correct": ranks[0] == 0, "answer_nll": own.expovariate(10 if correct else 0.2),
                    "answer_ranks": ranks, "margin": own.uniform(0, 7) if correct else own.uniform(-7, 0), "error": None,
                    **(masses(own, length, correct) if kind == "masses" else {}),
                    "needle_start": at, "needle_end": at + 19, "value_start": at + 10, "value_end": at + 17,
                    "question_start": length - 30, "haystack_start": starts[trial] if kind == "text" else None,
                    "haystack_sentences": length // 24,
                    "prompt_sha256": hashlib.sha256(question.encode() + shared.randbytes(8)).hexdigest(),
                }  # fmt: skip


def masses(own: random.Random, length: int, correct: bool) -> dict[str, Any]:
    """Return what a row of the attention probe has besides."""
    from ssmax_eval.probes.attention.masses import MASSES, MEASURES  # here, as a report loads no torch

    def measure() -> list[list[float]]:
        return [[float(f"{own.random() ** 4:.6g}") for _ in range(HEADS)] for _ in range(LAYERS)]

    by_layer: dict[str, Any] = {name: measure() for name in dict.fromkeys((*MASSES, *MEASURES))}
    by_layer |= {"maximum_at": [[own.randrange(length) for _ in range(HEADS)] for _ in range(LAYERS)], "row_sum": None}
    top = [float(f"{own.uniform(0.4, 1) if correct else own.random():.6g}") for _ in range(7)]
    return {
        "layers": [*range(LAYERS)], **by_layer, "haystack_nll": own.gauss(4.7, 0.2), "visible_keys": [length - 1] * LAYERS,
        "top_mass_answer": top, "top_mass_next": top,
    }  # fmt: skip


def write(folder: Path, kind: str, wanted: int) -> int:
    """Write runs below a folder, and return how many rows they have."""
    trials = max(1, round(wanted / len(MODELS) / len(LENGTHS) / len(DEPTHS)))
    count = trials * len(LENGTHS) * len(DEPTHS)
    for model in MODELS:
        probe, own = "attention" if kind == "masses" else "needle", hashlib.sha256(model.encode()).hexdigest()
        run = Run(folder / probe / own[:12])
        run.folder.mkdir(parents=True)
        with run.rows_path.open("w") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows(model, kind, trials))
        told = {"label": model, "architecture": "Qwen3ForCausalLM", "parameters": 2 * 10**6, "train_length": 1024}
        run.finish(
            {
                "probe": probe,
                "parameters": {},
                "model": {**told, "fingerprint": own[:16], "dtype": "bfloat16"},
                "attention": {"attention": model.rpartition("-")[2]},
                "rope": {},
                "environment": {"device": "cpu"},
                "rows": count,
                "tokens": count,
                "seconds": 1.0,
            }
        )
    return count * len(MODELS)


def timed(seconds: Counter[tuple[str, str]]) -> None:
    """Let every function of PHASES count its own CPU seconds, those of functions below it left out."""
    below = [0.0]
    made: dict[int, Callable[..., Any]] = {}

    def counted(function: FunctionType, phase: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            below.append(0.0)
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.process_time() - started
                seconds[phase, function.__name__] += whole - below.pop()
                below[-1] += whole

        return run

    for module in [each for name, each in sys.modules.items() if name.startswith("ssmax_eval") and each]:
        for name, value in [*vars(module).items()]:
            if not isinstance(value, FunctionType) or value.__name__ in UNTOLD or value.__name__.startswith("_"):
                continue
            phase = next(
                (phase for start, phase in PHASES.items() if f"{value.__module__}.".startswith(f"{start}.")), None
            )
            if phase:
                made.setdefault(id(value), counted(value, phase))
                setattr(module, name, made[id(value)])


def measure(folder: Path) -> None:
    """Make the page of a folder of runs in this process, and print what it took, as JSON."""
    import ssmax_eval
    from ssmax_eval import report

    seconds: Counter[tuple[str, str]] = Counter()
    timed(seconds)
    seconds["imports", ""] = time.process_time()
    page = report.report(folder, folder / "page.html")
    whole = time.process_time()
    assert ssmax_eval
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([whole, peak, page.stat().st_size, [[*key, each] for key, each in seconds.most_common()]]))


def main(asked: list[str]) -> None:
    for each in asked or ["84000", "masses:84000", "text:84000"]:
        kind, _, wanted = each.rpartition(":")
        assert (kind or "made") in KINDS, f"{kind}: allowed are {', '.join(KINDS)}"
        with tempfile.TemporaryDirectory() as folder:
            count = write(Path(folder), kind or "made", int(wanted))
            one = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, __file__, "--measure", folder], stdout=subprocess.PIPE, check=True, env=one
            )
        whole, peak, size, seconds = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{kind or 'made'}, {count:,} rows: {whole:.1f} s of CPU, {peak / 1e9:.2f} GB at its peak, a page of {size / 1e6:.1f} MB"
        )
        for phase in ("imports", *dict.fromkeys(PHASES.values())):
            own = [(name, each) for of, name, each in seconds if of == phase]
            parts = ", ".join(f"{name} {each:.1f}" for name, each in own if each >= 0.05)
            print(f"  {phase:10} {sum(each for _, each in own):6.1f} s  {parts}")


if __name__ == "__main__":
    measure(Path(sys.argv[2])) if sys.argv[1:2] == ["--measure"] else main(sys.argv[1:])
