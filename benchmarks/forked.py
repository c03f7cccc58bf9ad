"""Forked reading against whole reading of the same prompts, taking turns in this process: python benchmarks/forked.py [MODEL ...]

For each model: the share of tokens that are read, the ratio of seconds with its spread over trials, and how far the two ways
are apart: verdicts that differ, how many of them are near ties, the largest difference of an answer's nll. tiny:FAMILY is a small
random model of transformers, of which only the equality says anything.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from ssmax_eval import load_model
from ssmax_eval.data.needles import Needle
from ssmax_eval.data.prompts import Prompt
from ssmax_eval.probes.attention.masses import masses_of
from ssmax_eval.probes.needle.branches import branches, latest
from ssmax_eval.probes.needle.probe import NeedleProbe, prompts_at_once
from ssmax_eval.readers.answers import Score
from ssmax_eval.readers.forked import tokens_of, walks
from ssmax_eval.readers.memory import InMemory
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.setting import Setting

TIE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # logits: a lead so small can go to another token by rounding
# grouped heads, windows, a mixture of experts, latent attention, and a quarter of each head turned
TINY: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 16},
    "Gemma3Text": {"head_dim": 16, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "Mistral": {"sliding_window": 64},
    "Qwen3Moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "GPTNeoX": {},
}


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
    start = time.perf_counter()
    found = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def forked(reader: TransformersReader, whole: InMemory, prompts: list[Prompt]) -> list[Score]:
    """Score the prompts of a trial as branches of their haystack."""
    found: dict[int, Score] = {}
    for indices, score in branches(reader, whole, prompts, ARGUMENTS.masses):
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


def measure(reference: str) -> None:
    """Read trial after trial both ways, and print what was found."""
    given = ARGUMENTS
    model, tokenizer = opened(reference, given.dtype)
    depths = tuple(100 * i / max(1, given.depths - 1) for i in range(given.depths))
    probe = NeedleProbe(
        tuple(given.context_lengths),
        depths,
        given.trials,
        Needle("multikey", ask="all") if given.ask_all else Needle(),
        attention_mass=given.masses,
    )
    reader = TransformersReader(model, tokenizer)
    with Setting()(model):
        if (why := reader.unlike_forked(max(given.context_lengths))) is not None:
            print(f"{reference}: read whole: {why}")
            return
        whole = reader.in_memory(masses_of(reader) if given.masses else reader.answers, False)
        tokens, prompts_read, seconds, apart = [0, 0], 0, [], []
        unlike = ties = 0
        for trial in range(given.trials):
            prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan() if sample.trial == trial]

            calls = [partial(forked, reader, whole, prompts), partial(one_by_one, model, whole, prompts)]
            order = (0, 1) if trial % 2 else (1, 0)
            read = {i: timed(calls[i]) for i in order}
            seconds.append((read[0][0], read[1][0]))
            tokens[0] += sum(
                tokens_of(walk, prompts) for walk in walks(prompts, [latest(p, given.masses) for p in prompts])
            )
            tokens[1] += sum(reader.inputs(prompt) for prompt in prompts)
            prompts_read += len(prompts)
            for one, other in zip(read[0][1], read[1][1], strict=True):
                apart.append(abs(one["answer_nll"] - other["answer_nll"]))
                if one["predicted_tokens"] != other["predicted_tokens"]:
                    unlike += 1
                    ties += min(abs(one["margin"]), abs(other["margin"])) < TIE[model.dtype]
    ratios = sorted(one / other for one, other in seconds)
    total = [sum(each) for each in zip(*seconds, strict=True)]
    print(
        f"{reference} ({str(model.dtype).removeprefix('torch.')}): {prompts_read} prompts; tokens {tokens[0] / tokens[1]:.3f}; "
        f"seconds {total[0]:.1f} of {total[1]:.1f}, {total[0] / total[1]:.3f}, by trial {ratios[0]:.3f} to {ratios[-1]:.3f}, "
        f"median {median(ratios):.3f}; answers unlike {unlike} ({ties} of them near ties); nll apart at most {max(apart):.2g}",
        flush=True,
    )


def main() -> None:
    print(
        f"lengths {ARGUMENTS.context_lengths}, {ARGUMENTS.depths} depths, {ARGUMENTS.trials} trials, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for reference in ARGUMENTS.models:
        measure(reference)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=["softmax-bible-2m", "ssmax-bible-2m", *(f"tiny:{name}" for name in TINY)]
    )
    parser.add_argument("--context-lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--depths", type=int, default=11)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--masses", action="store_true", help="with what every head does in the answers' rows")
    parser.add_argument("--ask-all", action="store_true", help="a fact at each depth of one haystack, each asked for")
    ARGUMENTS = parser.parse_args()
    main()
