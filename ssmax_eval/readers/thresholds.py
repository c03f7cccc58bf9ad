"""How long a proof has to be: past every threshold that a config names and the run passes, as far as is affordable."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from ..mechanisms.implementation import implementations

SHORTEST = 64  # tokens of the input
# thresholds that a config can name: the input passes each that the run will pass, where that is affordable
THRESHOLD = re.compile(r"window|topk|top_k|chunk|block|original_max|local|stride|select|sparse|compress|sink|floor")
WORK = 2e11  # parameters times tokens of one forward: some seconds on two cores


def proof_length(model: PreTrainedModel, longest: int) -> int:
    """Return how many tokens are read: past every threshold that the config names and the run passes, as far as is affordable."""
    named = [value for value in thresholds(model.config.get_text_config().to_dict()) if value < longest]
    wanted = min(round(1.25 * max(named, default=0)) + 16, longest)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = len(list(model.modules())) * max(
        1, model.get_input_embeddings().weight.shape[-1]
    )  # at least the attention's
    while wanted > SHORTEST and wanted * (parameters + width * wanted) > WORK:
        wanted //= 2
    return max(SHORTEST, wanted)


def thresholds(config: Any, name: str = "") -> Iterator[int]:
    """Yield the whole numbers of a config, however deep, whose names say that something changes beyond them."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from thresholds(value, str(key))
    elif isinstance(config, list):
        for value in config:
            yield from thresholds(value, name)
    elif isinstance(config, int) and not isinstance(config, bool) and THRESHOLD.search(name):
        yield config


@contextmanager
def lowered(model: PreTrainedModel, proved: int, longest: int) -> Iterator[set[str]]:
    """Run a block with the thresholds that the run passes and `proved` tokens do not at half of that; yield their names.

    A large model cannot be read past its own thresholds for a proof, but past lower ones: what it does beyond them is the same.
    """
    owners = [vars(config) for config, _ in implementations(model)] + [vars(module) for module in model.modules()]
    kept = [
        (owner, name, value)
        for owner in owners
        for name, value in owner.items()
        if type(value) is int and proved <= value < longest and THRESHOLD.search(name)
    ]
    try:
        for owner, name, _ in kept:
            owner[name] = proved // 2
        yield {name for _, name, _ in kept}
    finally:
        for owner, name, value in kept:
            owner[name] = value
