"""Where a forward's time goes: python benchmarks/forward.py [MODEL ...] [--context-lengths N ...]

How much of the rate of one large matrix product a forward reaches, as one text of N tokens, only the last row's logits made; and
which share of its time goes into matrix products, sdpa, what attention does around it (rotary embedding, reshaping, our own
function where a mechanism stands), norms, activations, embedding and the rest. Timed by hooks on modules, on one thread of a CPU.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from memory import clock
from torch import nn
from torch.nn import functional

from ssmax_eval import load_model
from ssmax_eval.mechanisms.layers import attention_modules
from ssmax_eval.training.throughput import flops_per_token, matmul_rate


def kind_of(module: nn.Module, attends: set[nn.Module]) -> str:
    """Return what a module's own time, without that of those inside, is called."""
    name = type(module).__name__.lower()
    if isinstance(module, nn.Linear) or "conv1d" in name:
        return "matrix products"
    if module in attends:
        return "attention around sdpa: rotary, reshaping, mechanisms"
    for part, kind in (("norm", "norms"), ("rotary", "rotary angles"), ("embedding", "embedding"), ("mlp", "gating")):
        if part in name:
            return kind
    return "activations" if not list(module.children()) else "residuals, masks, Python"


@contextmanager
def timed(model: Any) -> Iterator[dict[str, float]]:
    """Count the seconds of each kind while the block runs, each without what it calls."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[list[Any]] = []

    def enter(kind: str) -> None:
        inside.append([kind, time.perf_counter(), 0.0])

    def leave() -> None:
        kind, start, below = inside.pop()
        took = time.perf_counter() - start
        spent[kind] += took - below
        if inside:
            inside[-1][2] += took

    attends = set(attention_modules(model).values())
    hooks = []
    for module in model.modules():
        kind = kind_of(module, attends)
        hooks.append(module.register_forward_pre_hook(lambda m, given, kind=kind: enter(kind)))
        hooks.append(module.register_forward_hook(lambda m, given, out: leave()))
    own = functional.scaled_dot_product_attention

    def sdpa(*given: Any, **options: Any) -> Any:
        enter("sdpa")
        out = own(*given, **options)
        leave()
        return out

    torch.nn.functional.scaled_dot_product_attention = sdpa
    try:
        yield spent
    finally:
        torch.nn.functional.scaled_dot_product_attention = own
        for hook in hooks:
            hook.remove()


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Return the fewest seconds of a call, after one that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = clock()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return min(seconds[1:])


def print_share(model: Any, lengths: tuple[int, ...] = (1024, 2048), repeats: int = 3) -> None:
    """Print how much of the rate of one large matrix product a forward reaches."""
    most = matmul_rate(model.device, model.dtype)
    head = 2 * model.get_output_embeddings().weight.numel()
    for length in lengths:
        ids = torch.randint(10, 300, (1, length), device=model.device)
        with torch.inference_mode():
            seconds = fastest(lambda ids=ids: model(ids, use_cache=False, logits_to_keep=1), repeats)
        rate = length * (flops_per_token(model, length) / 3 - head) / seconds
        print(
            f"  a forward of {length:,} tokens: {seconds:.3f} s, {rate / 1e9:,.0f} of {most / 1e9:,.0f} GFLOP/s, {rate / most:.0%}",
            flush=True,
        )


def print_parts(model: Any, lengths: tuple[int, ...], repeats: int) -> None:
    """Print which share of a forward each kind of its parts takes."""
    for length in lengths:
        ids = torch.randint(10, 300, (1, length), device=model.device)
        with torch.inference_mode():
            model(ids, use_cache=False, logits_to_keep=1)
            with timed(model) as spent:
                for _ in range(repeats):
                    model(ids, use_cache=False, logits_to_keep=1)
        total = sum(spent.values())
        shares = sorted(spent.items(), key=lambda each: -each[1])
        told = "; ".join(f"{kind} {seconds / total:.1%}" for kind, seconds in shares)
        print(f"  {length:,} tokens, {total / repeats:.3f} s: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["softmax-bible-2m", "ssmax-bible-2m", "smollm2-135m"])
    parser.add_argument("--context-lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    for reference in given.models:
        model, _ = load_model(reference, dtype=given.dtype, device=given.device)
        print(f"{reference}, {given.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print_share(model, tuple(given.context_lengths), given.repeats)
        print_parts(model, tuple(given.context_lengths), given.repeats)


if __name__ == "__main__":
    main()
