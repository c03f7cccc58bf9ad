"""What a probe takes when it is not told: the task, lengths and window that fit what the models were trained on."""

from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from ..models.sources import resolve
from ..models.train_length import train_length_of

SHORT = 1024  # tokens: the longest training length whose sixteenfold every machine can read
WINDOW = 256  # tokens


def default_task(models: Sequence[str]) -> str:
    """Return the task that these models of our recipes learned; single for any other."""
    tasks = {str(resolve(reference).training().get("task", "single")) for reference in models}
    if len(tasks) > 1:
        raise UserError(f"task: the models learned different ones ({', '.join(sorted(tasks))}); say which: --task NAME")
    return tasks.pop() if tasks else "single"


def default_lengths(models: Sequence[str]) -> list[int]:
    """Return 1 to 16 times the models' training length, where that is short enough to go far beyond it on any machine.

    Models with learned positions, which end where training did, are read up to there.
    """
    configs = [resolve(reference).config() for reference in models]
    lengths = [train_length_of(config) for config in configs]
    ends = [length for config, length in zip(configs, lengths, strict=True) if length and learns_positions(config)]
    if ends:
        return [max(1, min(ends) // part) for part in (4, 2, 1)]
    longest = max((length or SHORT + 1 for length in lengths), default=SHORT + 1)
    return [longest * factor for factor in (1, 2, 4, 8, 16)] if longest <= SHORT else [512, 1024, 2048]


def learns_positions(config: dict[str, Any]) -> bool:
    """Tell from a config.json whether a model has an embedding for each position and no more of them (GPT-2, OPT, ...)."""
    return "n_positions" in config or config.get("model_type") in ("opt", "biogpt", "xglm", "gpt_bigcode")


def default_window(models: Sequence[str]) -> int:
    """Return the near context that the context gain leaves: the models' shortest training length, at most 256 tokens."""
    lengths = [train_length_of(resolve(reference).config()) for reference in models]
    return min([WINDOW, *filter(None, lengths)])
