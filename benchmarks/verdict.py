"""What a verdict costs, by every way to ask: python benchmarks/verdict.py [MODEL ...] [--context-lengths N,...] [--trials N]

The same model, lengths, depths and prompts for all, taking turns in this process. lm-eval's own model type writes 128 tokens after
each prompt, as its niah tasks do, and scores the same answers by log-likelihood. Ours reads each prompt whole; reads what the
prompts of a trial share once; asks for a fact at every depth of one haystack, read once (`--task multikey --ask all`, a harder task:
the facts distract from each other); and asks only where it tells (`ssmax-eval reach`), until the precision is reached.
Printed: seconds with their spread (on a CPU the processor's own), tokens and peak memory, each as a multiple of reach's; the
effective length by each way; and how much of the machine's matrix products a forward makes use of.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import pandas as pd
import torch
from forward import print_share
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from memory import clock, measured

from ssmax_eval import load_model, load_results, statistics
from ssmax_eval.data.needles import Needle
from ssmax_eval.harness.documents import needle_document
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes.needle.branches import latest
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.forked import tokens_of, walks
from ssmax_eval.run import run_probes
from ssmax_eval.setting import Setting
from ssmax_eval.studies.reach import Asked, in_tokens, reach

WRITTEN = 128  # tokens, by lm-eval's niah tasks
GREEDY = {"do_sample": False, "temperature": 0.0, "until": [], "max_gen_toks": WRITTEN}
NIAH, LIKELIHOOD, WHOLE, GRID, ALL, REACH = (
    f"lm-eval, writing {WRITTEN} tokens as niah does",
    "lm-eval, log-likelihood",
    "our grid, each prompt whole",
    "our grid",
    "our grid, all questions of one haystack",
    "reach",
)


class WholeProbe(NeedleProbe):
    """The needle probe, each prompt read whole."""

    forks: ClassVar[bool] = False


@dataclass
class Told:
    """What a way to ask told: the effective length in words, the share found at each length, and the tokens that it read."""

    words: str
    found: "pd.Series[float] | None"
    tokens: int


def ways(model: Any, tokenizer: Any, probe: NeedleProbe, precision: float) -> dict[str, Callable[[], Told]]:
    """Return every way to ask a model, by its name."""
    models = {"model": (model, tokenizer)}
    lengths = probe.context_lengths
    # lm-eval refuses a model that is on a device of its own; batches of one, as they read most quickly here
    stock = HFLM(pretrained=model, tokenizer=tokenizer, max_length=max(lengths) + WRITTEN, batch_size=1)
    docs = [needle_document(tokenizer, probe, sample) for sample in probe.plan()]
    inputs = sum(doc["context_length"] - 1 for doc in docs)
    grid = (probe.context_lengths, probe.depth_percents, probe.trials)
    every = NeedleProbe(*grid, Needle("multikey", ask="all"))

    def run(own: NeedleProbe, tokens: int) -> Told:
        with tempfile.TemporaryDirectory() as place:
            rows = load_results(*run_probes([own], models, [Setting()], RunOptions(output_path=Path(place))))
        return told(rows, tokens)

    rows = None

    def judged(verdicts: list[bool], tokens: int) -> Told:
        """Say what verdicts come to, as rows of ours with lm-eval's verdicts in them."""
        nonlocal rows
        if rows is None:
            with tempfile.TemporaryDirectory() as place:
                rows = load_results(*run_probes([probe], models, [Setting()], RunOptions(output_path=Path(place))))
        by_sample = dict(zip([sample.name for sample in probe.plan()], verdicts, strict=True))
        return told(rows.assign(correct=rows["sample"].map(by_sample).astype("boolean")), tokens)

    def requests(kind: str, second: Callable[[dict[str, Any]], object]) -> list[Instance]:
        return [Instance(kind, doc, (doc["context"], second(doc)), 0, ("needle", i, 1)) for i, doc in enumerate(docs)]

    def niah() -> Told:
        written = stock.generate_until(requests("generate_until", lambda doc: dict(GREEDY)), disable_tqdm=True)
        right = [doc["expected"] in text for doc, text in zip(docs, written, strict=True)]
        return judged(right, inputs + WRITTEN * len(docs))

    def likelihood() -> Told:
        found = stock.loglikelihood(requests("loglikelihood", lambda doc: doc["answer"]), disable_tqdm=True)
        return judged([greedy for _, greedy in found], inputs)

    def reached() -> Told:
        asked = Asked(models, lengths=(min(lengths), max(lengths)), depths=probe.depth_percents, precision=precision)
        with tempfile.TemporaryDirectory() as place:
            end = reach(asked, RunOptions(output_path=Path(place))).end
        return Told("; ".join(map(in_tokens, end.crossings.values())), None, sum(end.tokens.values()))

    return {
        NIAH: niah,
        LIKELIHOOD: likelihood,
        WHOLE: partial(run, WholeProbe(*grid), inputs),
        GRID: partial(run, probe, forked_tokens(tokenizer, probe)),
        ALL: partial(run, every, forked_tokens(tokenizer, every)),
        REACH: reached,
    }


def forked_tokens(tokenizer: Any, probe: NeedleProbe) -> int:
    """Return how many tokens are read of a grid's prompts, what those of a trial share once."""
    by_trial = [
        [probe.prompt(tokenizer, sample) for sample in probe.plan() if sample.trial == trial]
        for trial in range(probe.trials)
    ]
    return sum(
        tokens_of(walk, prompts)
        for prompts in by_trial
        for walk in walks(prompts, [latest(each, False) for each in prompts])
    )


def told(rows: pd.DataFrame, tokens: int) -> Told:
    """Return what rows of a grid come to."""
    line = statistics.effective_lengths(rows).iloc[0]
    low, high = (f"{line[name]:,.0f}" if line[name] == line[name] else "nothing" for name in ("low", "high"))
    words = f"{'at least ' if line['beyond'] else ''}{line['effective_length']:,.0f} ({low} to {high})"
    return Told(words, statistics.lengths(rows).set_index("context_length")["accuracy"], tokens)


def measure(reference: str, given: argparse.Namespace) -> None:
    """Ask every way in turn, and print what each took."""
    model, tokenizer = load_model(reference, dtype=given.dtype, device=given.device)
    depths = tuple(100 * i / max(1, given.depths - 1) for i in range(given.depths))
    probe = NeedleProbe(tuple(given.context_lengths), depths, given.trials)
    print(
        f"{reference}, {str(model.dtype).removeprefix('torch.')}, lengths {given.context_lengths}, {given.depths} depths, "
        f"{given.trials} trials, {model.device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    if given.matmul:
        print_share(model)
    calls = ways(model, tokenizer, probe, given.precision)
    calls = {name: call for name, call in calls.items() if name not in given.without}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    said: dict[str, Told] = {}

    def ask(name: str) -> None:
        start = clock()
        said[name] = calls[name]()
        taken[name].append((clock() - start, 0.0))

    for turn in range(given.repeats):
        for name in [*calls][:: 1 if turn % 2 == 0 else -1]:
            _, mib = measured(partial(ask, name))
            taken[name][-1] = taken[name][-1][0], mib
    base = [seconds for seconds, _ in taken[REACH]]
    for name, each in taken.items():
        seconds = [one for one, _ in each]
        ratios = [one / other for one, other in zip(seconds, base, strict=True)]
        print(
            f"  {name:44} {median(seconds):7.1f} s, {median(ratios):5.2f}x ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"tokens {said[name].tokens:,}, {said[name].tokens / said[REACH].tokens:.2f}x; "
            f"memory {median(mib for _, mib in each):,.0f} MiB; reaches {said[name].words}",
            flush=True,
        )
    shares = pd.DataFrame({name: each.found for name, each in said.items() if each.found is not None})
    print(shares.T.round(3).to_string(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["softmax-bible-2m", "ssmax-bible-2m"])
    parser.add_argument("--context-lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--depths", type=int, default=5)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--precision", type=float, default=1.25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], help="ways to leave out, by their names")
    parser.add_argument(
        "--matmul", action="store_true", help="also say how much of the machine's rate a forward reaches"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    logging.getLogger("ssmax_eval").setLevel(logging.ERROR)
    for reference in given.models:
        measure(reference, given)


if __name__ == "__main__":
    main()
