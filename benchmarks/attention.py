"""Time mechanisms against transformers' own sdpa and eager, in one process: python benchmarks/attention.py [MODEL] [LENGTH] [SETTING...]

Prints the ratio of each forward's seconds to plain sdpa's; sdpa is timed again between the others, against drift.
"""

import statistics
import sys
import time

import torch

from ssmax_eval import Setting, UserError, load_model

REPEATS = 7
SETTINGS = (
    "softmax", "ssmax", "ssmax-bias", "log-n", "eager", "softmax1", "softmax-sink", "entmax-1.5", "differential",
    "softmax with alibi", "ssmax with alibi",
)  # fmt: skip


@torch.inference_mode()
def main(reference: str = "smollm2-135m", length: str = "2048", *asked: str) -> None:
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
                name, _, position = setting.partition(" with ")
                with Setting.of(name, position=position or None)(model):
                    ratios.append(forward() / plain)
        return statistics.median(ratios)

    print(f"{reference}, {length} tokens, {model.dtype}, {model.device.type}, {torch.get_num_threads()} threads")
    forward()
    for setting in asked or SETTINGS:
        try:
            print(f"{setting:20} {against_sdpa(setting):.3f} of sdpa's seconds", flush=True)
        except UserError as error:  # differential attention needs pairs of key heads
            print(f"{setting:20} {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
