"""How long forwards of a model take on this machine: a few short ones are timed, others lie between them or in proportion."""

import inspect
import time
from bisect import bisect_left
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from .mechanisms.layers import reads_on

FIRST_TIMED = 128  # tokens of the first forward that is timed
TIMED = 0.5  # seconds that timing may take, about


def at(operations: float, known: Sequence[tuple[float, float]]) -> float:
    """Return the seconds of so many operations: in a line between those known, in proportion to the last beyond them."""
    i = bisect_left(known, (operations, 0.0))
    if i == len(known):
        return operations * known[-1][1] / known[-1][0]
    if i == 0:
        return known[0][1]
    (x0, y0), (x1, y1) = known[i - 1 : i + 1]
    return y0 + (y1 - y0) * (operations - x0) / (x1 - x0)


@torch.inference_mode()
def time_forwards(model: PreTrainedModel, longest: int) -> list[tuple[int, float]]:
    """Return (tokens, seconds) of forwards of doubling length; none where memory runs out."""
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    vocabulary = model.get_input_embeddings().weight.shape[0]

    def took(length: int) -> float:
        ids = (torch.arange(length) % vocabulary)[None].to(reads_on(model))
        start = time.perf_counter()
        model(input_ids=ids, use_cache=False, **few)
        getattr(torch, reads_on(model).type).synchronize()
        return time.perf_counter() - start

    found: list[tuple[int, float]] = []
    length = min(FIRST_TIMED, longest)
    on_processor = reads_on(model).type == "cpu"
    try:
        spent = took(length)  # the first one also loads kernels; on a processor it counts where it is long by itself
        if on_processor and spent > TIMED:
            return [(length, spent)]
        spent *= on_processor
        while True:
            if not on_processor:
                took(length)  # an accelerator loads other kernels for other lengths, seconds of them for any model
            found.append((length, took(length)))
            spent += found[-1][1]
            if length == longest or spent + 3 * found[-1][1] > TIMED:
                return found
            length = min(2 * length, longest)
    except RuntimeError:
        return found
