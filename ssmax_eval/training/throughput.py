"""How fast a training ran: tokens a second, and the share of the machine's matrix products that the model's own make up."""

import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..mechanisms.layers import attends_both_ways
from .recipes import Recipe

MATMUL = {
    "cuda": (8192, 10),
    "cpu": (1024, 3),
}  # width of square matrices, large enough to keep the device busy; repeats


def throughput(
    model: PreTrainedModel, recipe: Recipe, log: list[dict[str, Any]], device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Return how fast the steps at train_length ran, the lines of the log telling when.

    tokens_per_second: the upper quartile between two lines, so that compiling and saving do not count. flops_per_second: of the
    model's matrix products, forward and backward. matmul_flops_per_second: of one large product on this device, in the
    dtype that was trained in, measured now. utilization: the ratio of the two.
    """
    long = [line for line in log if line["step"] >= recipe.short_steps]
    speeds = [
        (two["tokens"] - one["tokens"]) / (two["seconds"] - one["seconds"])
        for one, two in pairwise(long)
        if two["seconds"] > one["seconds"]
    ]
    if not speeds:
        return {}
    tokens = sorted(speeds)[3 * len(speeds) // 4]
    flops, most = tokens * flops_per_token(model, statistics.fmean(recipe.lengths)), matmul_rate(device, dtype)
    return {
        "tokens_per_second": round(tokens, 1),
        "flops_per_second": flops,
        "matmul_flops_per_second": most,
        "utilization": round(flops / most, 4),
    }


def flops_per_token(model: PreTrainedModel, length: float) -> float:
    """Return the floating-point operations of a training step a token: 6 for each weight in a matrix product, and attention's.

    The head counts, the lookup of embeddings does not; a row attends to (length + 1) / 2 keys on average, in an encoder
    to all, in two products, three times (forward and both gradients). As in PaLM (arXiv 2204.02311, appendix B), but for causal attention.
    """
    config = model.config
    head = model.get_output_embeddings()
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not head.weight}
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and ".position_bias." not in name]
    weights = sum(p.numel() for p in matrices if id(p) not in looked_up)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    keys = length if attends_both_ways(model) else (length + 1) / 2
    return 6 * weights + 3 * 2 * 2 * config.num_hidden_layers * width * keys


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a large matrix product of random numbers."""
    size, repeats = MATMUL.get(device.type, (2048, 3))
    one, two = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    module = getattr(torch, device.type)

    def seconds() -> float:
        module.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            one @ two
        module.synchronize()
        return time.perf_counter() - start

    seconds()
    return float(repeats * 2 * size**3 / statistics.median(seconds() for _ in range(3)))
