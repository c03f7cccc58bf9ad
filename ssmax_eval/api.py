"""Probes and training as Python functions, the same words and defaults as on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import statistics
from .data.needles import Needle
from .dry_run import dry_run as plan_without_weights
from .models.subjects import RunOptions
from .plans import Probe, planned_runs
from .probes.loss import LossProbe
from .probes.make import loss_probe, needle_probe
from .probes.needle import NeedleProbe
from .processes import launched
from .results import load_results
from .run import run_probes
from .setting import settings_of
from .signatures import takes


def needle(
    models: Any,
    *,
    attention: str | Sequence[str] | None = None,
    rope_theta: float | None = None,
    rope_theta_factor: float | Sequence[float] = 1.0,
    rope_scaling: str | None = None,
    position: str | None = None,
    context_lengths: Sequence[int] | None = None,
    depth_percents: Sequence[float] = NeedleProbe.depth_percents,
    trials: int = NeedleProbe.trials,
    task: str | None = None,
    value: str = Needle.value,
    needles: int = Needle.needles,
    haystack: str = NeedleProbe.haystack,
    controls: Sequence[str] = NeedleProbe.controls,
    scoring: str = NeedleProbe.scoring,
    attention_mass: bool = NeedleProbe.attention_mass,
    seed: int = NeedleProbe.seed,
    limit: int | None = NeedleProbe.limit,
    limit_tokens: int | None = NeedleProbe.limit_tokens,
    chunk: int | None = NeedleProbe.chunk,
    plan: int = NeedleProbe.plan_version,
    batch_size: int | None = RunOptions.batch_size,
    dtype: str = RunOptions.dtype,
    device: str = RunOptions.device,
    device_map: str | None = RunOptions.device_map,
    output_path: str | Path = RunOptions.output_path,
    fresh: bool = RunOptions.fresh,
    trust_remote_code: bool = RunOptions.trust_remote_code,
    dry_run: bool = False,
) -> pd.DataFrame:
    """Run needle grids and return their rows, or with dry_run what they would cost by context length.

    models: references, {label: reference or (model, tokenizer)}, or one (model, tokenizer). attention and
    rope_theta_factor take one value or several. position: nope or alibi in RoPE's place. context_lengths, in tokens of the
    whole prompt; None goes past the models' training length (probes.defaults.default_lengths). depth_percents: 0 (start) to
    100. trials: prompts a cell. task None is what our recipes trained the models for, else single. controls: no-needle,
    needle-only. scoring: forced or generate. limit: the first N prompts. limit_tokens: at most N tokens a model and setting.
    chunk: tokens to prefill at a time, batch_size: prompts in a forward; None chooses. device_map: auto spreads a model over
    all devices. plan: 2, a trial is one haystack for all lengths and depths; 1, one for each prompt. Raises UserError.
    """
    probe = needle_probe(
        models,
        trust_remote_code,
        context_lengths=context_lengths,
        depth_percents=depth_percents,
        trials=trials,
        task=task,
        value=value,
        needles=needles,
        haystack=haystack,
        controls=controls,
        scoring=scoring,
        attention_mass=attention_mass,
        seed=seed,
        limit=limit,
        limit_tokens=limit_tokens,
        chunk=chunk,
        plan_version=plan,
    )
    options = RunOptions(dtype, device, device_map, batch_size, Path(output_path), fresh, trust_remote_code)
    return run(probe, models, attention, rope_theta, rope_theta_factor, rope_scaling, position, options, dry_run)


@takes(needle, without=("scoring", "attention_mass"))
def attention(models: Any, **options: Any) -> pd.DataFrame:
    """Run needle grids with attention masses and return one line per prompt, layer and head (statistics.heads).

    models and options as in needle.
    """
    rows = needle(models, attention_mass=True, **options)
    return rows if options.get("dry_run") else statistics.heads(statistics.with_series(rows))


def loss(
    models: Any,
    *,
    attention: str | Sequence[str] | None = None,
    rope_theta: float | None = None,
    rope_theta_factor: float | Sequence[float] = 1.0,
    rope_scaling: str | None = None,
    position: str | None = None,
    context_length: int | None = None,
    documents: int = LossProbe.documents,
    text: str = LossProbe.text,
    window: int | None = None,
    pack: bool = LossProbe.pack,
    seed: int = LossProbe.seed,
    limit_tokens: int | None = LossProbe.limit_tokens,
    chunk: int | None = LossProbe.chunk,
    dtype: str = RunOptions.dtype,
    device: str = RunOptions.device,
    device_map: str | None = RunOptions.device_map,
    output_path: str | Path = RunOptions.output_path,
    fresh: bool = RunOptions.fresh,
    trust_remote_code: bool = RunOptions.trust_remote_code,
    dry_run: bool = False,
) -> pd.DataFrame:
    """Run the loss probe and return its rows: nll_sum (nats) and tokens of each document's position bins and windows.

    context_length: tokens of a document; None is the longest length that needle takes for the models. window: tokens of near
    context that the context gain leaves; None is the models' training length, at most 256. text: a name, file or
    directory, whose files are documents; pack joins short ones. The rest as in needle.
    statistics.loss_by_position and statistics.context_gain sum the rows. Raises UserError.
    """
    probe = loss_probe(
        models,
        trust_remote_code,
        context_length=context_length,
        documents=documents,
        text=text,
        window=window,
        pack=pack,
        seed=seed,
        limit_tokens=limit_tokens,
        chunk=chunk,
    )
    options = RunOptions(dtype, device, device_map, None, Path(output_path), fresh, trust_remote_code)
    return run(probe, models, attention, rope_theta, rope_theta_factor, rope_scaling, position, options, dry_run)


def run(
    probe: Probe,
    models: Any,
    attention: str | Sequence[str] | None,
    rope_theta: float | None,
    rope_theta_factor: float | Sequence[float],
    rope_scaling: str | None,
    position: str | None,
    options: RunOptions,
    dry_run: bool,
) -> pd.DataFrame:
    """Run a probe in every setting and return the rows, or what they would cost."""
    factors = [rope_theta_factor] if isinstance(rope_theta_factor, int | float) else list(rope_theta_factor)
    mechanisms = [attention] if attention is None or isinstance(attention, str) else list(attention)
    asked = ([probe], models, settings_of(mechanisms, rope_theta, factors, rope_scaling, position), options)
    if dry_run:
        return pd.DataFrame(plan_without_weights(planned_runs(*asked), options)["lengths"])
    return load_results(*run_probes(*asked))


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
    from .training.recipes import recipe as find
    from .training.train import Job
    from .training.train import train as run

    chosen = find(recipe).changed({key: as_text(value) for key, value in changes.items()})
    folder = run(Job(chosen, attention, swap_to, swap_fraction, seed, start), Path(out), device, fresh, compiled)
    if launched().is_first and not (folder / "README.md").exists():
        write_card(folder)
    return folder


def as_text(value: Any) -> str:
    """Write a recipe's value as --set takes it."""
    return ":".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
