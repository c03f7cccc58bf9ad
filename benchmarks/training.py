"""Time a training step of recipe gpu's model under each mechanism against softmax, in one process: python benchmarks/training.py [--toy]

Forward, loss, backward and AdamW on random tokens, compiled and in bfloat16 on CUDA, as the trainer does; the mechanisms take turns.
"""

import statistics
import sys
import time
from typing import Any

import torch

from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.training.architecture import build
from ssmax_eval.training.recipes import recipe
from ssmax_eval.training.throughput import flops_per_token, matmul_rate
from ssmax_eval.training.trainer import weighted_nll

REPEATS = 20
MECHANISMS = ("softmax", "ssmax", "ssmax-bias")


class Vocabulary:
    """What `build` asks a tokenizer for."""

    eos_token_id = pad_token_id = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def main(toy: bool) -> None:
    shape = recipe("gpu")
    if toy:
        shape = shape.changed(
            {"hidden": "64", "heads": "2", "layers": "2", "tokens_per_step": "2048", "train_length": "512"}
        )
    cuda = torch.cuda.is_available()
    where = torch.device("cuda" if cuda else "cpu")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocabulary, (shape.batch_size, shape.train_length), generator=generator).to(where)
    kinds = torch.randint(0, 4, ids.shape, generator=generator).to(where)
    weights = torch.tensor([1.0, 1.0, 0.1, 3.0], device=where)
    steps: dict[str, Any] = {}
    for mechanism in MECHANISMS:
        tokenizer: Any = Vocabulary(shape.vocabulary)
        model = build(shape, tokenizer, 0).to(where)
        attach(model, mechanism)
        flops = flops_per_token(model, shape.train_length)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        run, score = (torch.compile(model), torch.compile(weighted_nll)) if cuda else (model, weighted_nll)

        def step(run: Any = run, score: Any = score, optimizer: Any = optimizer) -> float:
            start = time.perf_counter()
            with torch.autocast(where.type, torch.bfloat16):
                total, _ = score(run(input_ids=ids, use_cache=False).logits, ids, kinds, weights)
            (total / ids.numel()).backward()
            optimizer.step()
            optimizer.zero_grad()
            if cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - start

        for _ in range(3):
            step()
        steps[mechanism] = step
    seconds: dict[str, list[float]] = {mechanism: [] for mechanism in MECHANISMS}
    for _ in range(3 if toy else REPEATS):
        for mechanism, step in steps.items():
            seconds[mechanism].append(step())
    rate = matmul_rate(where, torch.bfloat16)
    print(
        f"recipe gpu, {ids.numel():,} tokens a step of {shape.train_length}, {where.type}, bf16 matmul {rate / 1e12:.1f} TFLOP/s"
    )
    for mechanism in MECHANISMS:
        ratio = statistics.median(s / plain for s, plain in zip(seconds[mechanism], seconds["softmax"], strict=True))
        speed = ids.numel() / statistics.median(seconds[mechanism])
        print(
            f"{mechanism:12} {ratio:.3f} of softmax's seconds, {speed:,.0f} tokens/s, {speed * flops / rate:.2f} of the matmul rate"
        )


if __name__ == "__main__":
    main("--toy" in sys.argv)
