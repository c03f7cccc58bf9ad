"""Probes and training as Python functions, the same words as on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import statistics
from .data.needles import Needle
from .evaluate import Settings, rope_settings, run_probe
from .probes.defaults import default_task
from .probes.loss import LossProbe
from .probes.needle import NeedleProbe
from .results import load_results


def needle(
    models: Any,
    *,
    attention: str | Sequence[str] | None = None,
    rope_theta: float | None = None,
    rope_theta_factor: float | Sequence[float] = 1.0,
    rope_scaling: str | None = None,
    task: str | None = None,
    value: str = "number",
    needles: int = 4,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    output_path: str | Path = "results",
    fresh: bool = False,
    trust_remote_code: bool = False,
    **grid: Any,
) -> pd.DataFrame:
    """Run needle grids and return their rows.

    models: references, {label: reference or (model, tokenizer)}, or one (model, tokenizer). attention and
    rope_theta_factor take one value or several. task None is what our recipes trained the models for, else single.
    grid: the fields of NeedleProbe (context_lengths, depth_percents, trials, haystack, scoring, controls, seed, limit, attention_mass).
    Raises UserError.
    """
    for name in ("context_lengths", "depth_percents", "controls"):
        if name in grid:
            grid[name] = tuple(grid[name])
    task = task or default_task(references(models))
    probe = NeedleProbe(needle=Needle(task, value, needles), **grid)
    settings = Settings(dtype, device, batch_size, Path(output_path), fresh, trust_remote_code)
    runs = run_probe(
        probe, models, laws_of(attention), rope_settings(rope_theta, several(rope_theta_factor), rope_scaling), settings
    )
    return load_results(*runs)


def attention(models: Any, **options: Any) -> pd.DataFrame:
    """Run needle grids with attention masses and return one line per prompt, layer and head (statistics.heads).

    models and options as in needle, scoring aside.
    """
    return statistics.heads(statistics.with_series(needle(models, attention_mass=True, **options)))


def loss(
    models: Any,
    *,
    attention: str | Sequence[str] | None = None,
    rope_theta: float | None = None,
    rope_theta_factor: float | Sequence[float] = 1.0,
    rope_scaling: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    output_path: str | Path = "results",
    fresh: bool = False,
    trust_remote_code: bool = False,
    **documents: Any,
) -> pd.DataFrame:
    """Run the loss probe and return its rows: nll_sum (nats) and tokens of each document's position bins and windows.

    documents: the fields of LossProbe (context_length, documents, text, window, pack, seed, chunk); the rest as in needle.
    statistics.loss_by_position and statistics.context_gain sum them. Raises UserError.
    """
    settings = Settings(dtype, device, None, Path(output_path), fresh, trust_remote_code)
    ropes = rope_settings(rope_theta, several(rope_theta_factor), rope_scaling)
    return load_results(*run_probe(LossProbe(**documents), models, laws_of(attention), ropes, settings))


def laws_of(attention: str | Sequence[str] | None) -> list[str | None]:
    return [attention] if attention is None or isinstance(attention, str) else list(attention)


def several(value: float | Sequence[float]) -> list[float]:
    return [value] if isinstance(value, int | float) else list(value)


def references(models: Any) -> list[str]:
    """Return those of the models that are given by name or path."""
    given = models.values() if isinstance(models, dict) else [models] if isinstance(models, str) else models
    return [model for model in given if isinstance(model, str)]


def train(
    recipe: str,
    attention: str | None = None,
    *,
    out: str | Path,
    seed: int = 0,
    swap_to: str | None = None,
    swap_fraction: float = 0.125,
    start: str | None = None,
    device: str = "auto",
    fresh: bool = False,
    compiled: bool | None = None,
    **changes: Any,
) -> Path:
    """Train one model of a recipe into folder `out` and return it; a stopped run goes on, a finished one is left alone.

    compiled: by torch.compile; None does so on CUDA. changes: fields of the recipe set to other values (steps=2000,
    text="book.txt", digits=(4, 9)). Raises UserError.
    """
    from .training.card import write_card
    from .training.folder import RANK
    from .training.recipes import recipe as find
    from .training.train import Job
    from .training.train import train as run

    chosen = find(recipe).changed({key: as_text(value) for key, value in changes.items()})
    folder = run(Job(chosen, attention, swap_to, swap_fraction, seed, start), Path(out), device, fresh, compiled)
    if RANK == 0 and not (folder / "README.md").exists():
        write_card(folder)
    return folder


def as_text(value: Any) -> str:
    """Write a recipe's value as --set takes it."""
    return ":".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
