"""Time the needle probe against its alternatives, all in this process: python benchmarks/needle.py [MODEL] [LENGTH]

Prints the ratio of each alternative's seconds to ours: token-by-token generation, full logits, one pass per answer token.
"""

import sys
import time
from collections.abc import Callable

import torch

from ssmax_eval import load_model
from ssmax_eval.probes.needle import NeedleProbe
from ssmax_eval.probes.scoring import forced

REPEATS = 3


def best(function: Callable[[], object]) -> float:
    """Return the fewest seconds of a few calls, after one that warms up."""
    function()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@torch.inference_mode()
def main(reference: str = "smollm2-135m", length: str = "1024") -> None:
    model, tokenizer = load_model(reference)
    probe = NeedleProbe(context_lengths=(int(length),), depth_percents=(50,), trials=1)
    prompt = probe.prompt(tokenizer, probe.plan()[0])
    k = prompt.answer_length
    ids = torch.tensor([prompt.ids], device=model.device)

    def generate() -> object:
        return model.generate(
            input_ids=ids[:, :-k],
            attention_mask=torch.ones_like(ids[:, :-k]),
            max_new_tokens=k,
            do_sample=False,
            pad_token_id=0,
        )

    def full_logits() -> object:
        return model(ids[:, :-1], use_cache=False).logits.float().log_softmax(-1)[:, -k:]

    def pass_per_token() -> object:
        return [model(ids[:, : -k + i], use_cache=False, logits_to_keep=1).logits for i in range(k)]

    ours = best(lambda: forced(model, tokenizer, [prompt]))
    print(
        f"{reference}, {length} tokens, {k} answer tokens, {model.dtype}, {model.device.type}, {torch.get_num_threads()} threads"
    )
    print(f"forced scoring, only the answer's rows   {ours:8.3f} s   1.00")
    for name, function in (
        ("greedy generation with a KV cache", generate),
        ("forced scoring over full logits", full_logits),
        ("one pass per answer token", pass_per_token),
    ):
        seconds = best(function)
        print(f"{name:40} {seconds:8.3f} s   {seconds / ours:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
