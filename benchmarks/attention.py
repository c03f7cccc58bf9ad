"""Time every attention law against transformers' own sdpa and eager, in one process: python benchmarks/attention.py [MODEL] [LENGTH]

Prints the ratio of each forward's seconds to plain sdpa's; sdpa is timed again between the others, against drift.
"""

import statistics
import sys
import time

import torch

from ssmax_eval import Setting, load_model

REPEATS = 5


@torch.inference_mode()
def main(reference: str = "smollm2-135m", length: str = "2048") -> None:
    model, _ = load_model(reference)
    ids = torch.randint(0, model.config.vocab_size, (1, int(length)), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )

    def forward() -> float:
        start = time.perf_counter()
        model(ids, logits_to_keep=1, use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def against_sdpa(setting: str) -> float:
        ratios = []
        for _ in range(REPEATS):
            model.set_attn_implementation("sdpa")
            plain = forward()
            if setting == "eager":
                model.set_attn_implementation("eager")
                ratios.append(forward() / plain)
            else:
                with Setting.of(setting)(model):
                    ratios.append(forward() / plain)
        return statistics.median(ratios)

    print(f"{reference}, {length} tokens, {model.dtype}, {model.device.type}, {torch.get_num_threads()} threads")
    forward()
    for setting in ("softmax", "ssmax", "ssmax-bias", "log-n", "eager"):
        print(f"{setting:12} {against_sdpa(setting):.3f} of sdpa's seconds")


if __name__ == "__main__":
    main(*sys.argv[1:])
