"""Forked reading against whole reading of the same prompts, taking turns in this process: python benchmarks/forked.py [MODEL ...]

For each model: the share of tokens that are read, the ratio of seconds with its spread over trials (on a CPU the processor's own,
which other work disturbs less), and how far the two ways are apart: verdicts that differ, how many of them are near ties, the
largest difference of an answer's nll. tiny:FAMILY is a small random model of transformers, of which only the equality says
anything. `--equality`: 1,000 prompts and more over models of
different kinds (EQUALITY), in float32, and a part of them in bfloat16; MODEL names some of them.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from memory import clock

from ssmax_eval import load_model
from ssmax_eval.data.needles import Needle
from ssmax_eval.data.prompts import Prompt
from ssmax_eval.probes.attention.masses import branch_masses_of, masses_of
from ssmax_eval.probes.needle.branches import branches, latest
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.answers import Score
from ssmax_eval.readers.forked import tokens_of, walks
from ssmax_eval.readers.memory import InMemory, prompts_at_once
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.setting import Setting

TIE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # logits: a lead so small can go to another token by rounding
# grouped heads, windows, a mixture of experts, a quarter of each head turned, and layers that carry a state
TINY: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 16},
    "Gemma3Text": {"head_dim": 16, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "Mistral": {"sliding_window": 64},
    "Qwen3Moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "GPTNeoX": {},
    "Mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "expand": 2, "chunk_size": 64},
    "Jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False,
        "mamba_d_state": 8, "mamba_dt_rank": 4,
    },
}  # fmt: skip
STUDY = "results/models/study"  # of the checkout
# context lengths and trials of each model, with 11 depths: the two data sets, QK-norm with a query scale, a learned table, a large
# vocabulary with grouped heads, windows; and layers that carry a state, which has to be read whole
SMALL = (256, 512, 1024, 2048)
EQUALITY: dict[str, tuple[tuple[int, ...], int]] = {
    f"{STUDY}/softmax-2m": (SMALL, 5),
    f"{STUDY}/ssmax-2m": (SMALL, 5),
    "softmax-bible-2m": (SMALL, 5),
    "ssmax-bible-2m": (SMALL, 5),
    f"{STUDY}/cpu-learned-p-s0": (SMALL, 5),
    "tiny:Gemma3Text": (SMALL, 5),
    "tiny:Jamba": ((256, 512), 1),
    "smollm2-135m": ((512, 768, 1024), 3),
}


@dataclass
class Found:
    """What both ways came to.

    tokens, seconds: forked, and whole. unlike: verdicts, of which ties are near ties. others: wrong answers of other tokens. apart: the
    largest difference of an answer's nll.
    """

    prompts: int
    tokens: tuple[int, int]
    seconds: list[tuple[float, float]]
    unlike: int
    ties: int
    others: int
    apart: float

    def __str__(self) -> str:
        ratios = sorted(one / other for one, other in self.seconds)
        one, other = (sum(each) for each in zip(*self.seconds, strict=True))
        return (
            f"{self.prompts} prompts; tokens {self.tokens[0] / self.tokens[1]:.3f}; seconds {one:.1f} of {other:.1f}, "
            f"{one / other:.3f}, by trial {ratios[0]:.3f} to {ratios[-1]:.3f}, median {median(ratios):.3f}; "
            f"verdicts unlike {self.unlike} ({self.ties} of them near ties), other wrong answers {self.others}; "
            f"nll apart at most {self.apart:.2g}"
        )


def opened(reference: str, dtype: str) -> tuple[Any, Any]:
    """Return a model and its tokenizer; tiny:FAMILY has random weights and the bundled pair's tokenizer."""
    kind, _, family = reference.partition(":")
    if kind != "tiny":
        return load_model(reference, dtype=dtype, device=ARGUMENTS.device)
    import transformers

    tokenizer = load_model("softmax-bible-2m")[1]
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16_384, "initializer_range": 0.2,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**{**shape, **TINY.get(family, {})})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.eval().to(ARGUMENTS.device), tokenizer


def timed(call: Callable[[], list[Score]]) -> tuple[float, list[Score]]:
    start = clock()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start, found


def forked(reader: TransformersReader, whole: InMemory, by_snapshots: bool, prompts: list[Prompt]) -> list[Score]:
    """Score the prompts of a trial as branches of their haystack."""
    found: dict[int, Score] = {}
    read = branch_masses_of(reader) if ARGUMENTS.masses else reader.forked
    for indices, score in branches(reader, whole, read, prompts, ARGUMENTS.masses, by_snapshots=by_snapshots):
        found |= dict(zip(indices, score(), strict=True))
    return [found[i] for i in range(len(prompts))]


def one_by_one(model: Any, whole: InMemory, prompts: list[Prompt]) -> list[Score]:
    """Score the prompts of a trial whole, those of one length in batches; they come by length."""
    found: list[Score] = []
    for length in sorted({len(prompt.ids) for prompt in prompts}):
        same = [prompt for prompt in prompts if len(prompt.ids) == length]
        size = prompts_at_once(model, length)
        for start in range(0, len(same), size):
            found += whole(same[start : start + size])
    return found


def measure(reference: str, lengths: tuple[int, ...], trials: int, dtype: str) -> Found | None:
    """Read trial after trial both ways, and print what was found; None for a model that is read whole."""
    given = ARGUMENTS
    model, tokenizer = opened(reference, dtype)
    depths = tuple(100 * i / max(1, given.depths - 1) for i in range(given.depths))
    needle = Needle("multikey", ask="all") if given.ask_all else Needle()
    probe = NeedleProbe(lengths, depths, given.first + trials, needle, attention_mass=given.masses)
    reader = TransformersReader(model, tokenizer)
    name = f"{reference.removeprefix(STUDY + '/')} ({dtype})"
    with Setting()(model):
        how = reader.forking(max(lengths), probe.needs)
        if how.why is not None:
            print(f"{name}: read whole: {how}", flush=True)
            return None
        whole = reader.in_memory(masses_of(reader) if given.masses else reader.answers, False)
        found = Found(0, (0, 0), [], 0, 0, 0, 0.0)
        for trial in range(given.first, given.first + trials):
            prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan() if sample.trial == trial]
            calls = [
                partial(forked, reader, whole, how.by_snapshots, prompts),
                partial(one_by_one, model, whole, prompts),
            ]
            order = (0, 1) if trial % 2 else (1, 0)
            read = {i: timed(calls[i]) for i in order}
            found.seconds.append((read[0][0], read[1][0]))
            walked = walks(prompts, [latest(prompt, given.masses) for prompt in prompts])
            found.tokens = (
                found.tokens[0] + sum(tokens_of(walk, prompts) for walk in walked),
                found.tokens[1] + sum(reader.inputs(prompt) for prompt in prompts),
            )
            found.prompts += len(prompts)
            for one, other in zip(read[0][1], read[1][1], strict=True):
                found.apart = max(found.apart, abs(one["answer_nll"] - other["answer_nll"]))
                if one["correct"] != other["correct"]:
                    found.unlike += 1
                    found.ties += min(abs(one["margin"]), abs(other["margin"])) < TIE[model.dtype]
                else:
                    found.others += one["predicted_tokens"] != other["predicted_tokens"]
    print(f"{name}: {found}", flush=True)
    return found


def equality(models: list[str]) -> None:
    """Compare both ways on EQUALITY, or on the models named of it, and print the sum by dtype."""
    for dtype in ARGUMENTS.dtype or ("float32", "bfloat16"):
        found = []
        for reference, (lengths, trials) in EQUALITY.items():
            if not models or reference.rpartition("/")[2] in models:
                asked = ARGUMENTS.trials or (trials if dtype == "float32" else 1)
                found.append(measure(reference, lengths, asked, dtype))
        told = [each for each in found if each is not None]
        print(
            f"all ({dtype}): {sum(each.prompts for each in told)} prompts of {len(told)} models; verdicts unlike "
            f"{sum(each.unlike for each in told)} ({sum(each.ties for each in told)} of them near ties), other wrong answers "
            f"{sum(each.others for each in told)}; nll apart at most "
            f"{max((each.apart for each in told), default=0.0):.2g}; {len(found) - len(told)} read whole",
            flush=True,
        )


def main() -> None:
    given = ARGUMENTS
    print(f"{given.depths} depths, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if given.equality:
        equality(given.models)
        return
    trials = given.trials or 3
    print(f"lengths {given.context_lengths}, {trials} trials")
    for reference in given.models or ["softmax-bible-2m", "ssmax-bible-2m", *(f"tiny:{name}" for name in TINY)]:
        for dtype in given.dtype or ["float32"]:
            measure(reference, tuple(given.context_lengths), trials, dtype)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--context-lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--depths", type=int, default=11)
    parser.add_argument("--trials", type=int, help="3, or in --equality what is set there")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--equality", action="store_true", help="1,000 prompts over models of different kinds")
    parser.add_argument("--dtype", nargs="+", help="float32, or in --equality bfloat16 too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--masses", action="store_true", help="with what every head does in the answers' rows")
    parser.add_argument("--ask-all", action="store_true", help="a fact at each depth of one haystack, each asked for")
    ARGUMENTS = parser.parse_args()
    main()
