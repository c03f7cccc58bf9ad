"""The probes as Python functions, the same words as on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .data.needles import Needle
from .evaluate import Settings, rope_settings, run_probe
from .probes.needle import NeedleProbe
from .results import load_results


def needle(
    models: Any,
    *,
    attention: str | Sequence[str] | None = None,
    rope_theta: float | None = None,
    rope_theta_factor: float | Sequence[float] = 1.0,
    rope_scaling: str | None = None,
    task: str = "single",
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
    rope_theta_factor take one value or several. grid: the fields of NeedleProbe (context_lengths, depth_percents, trials,
    haystack, scoring, controls, seed, limit). Raises UserError.
    """
    for name in ("context_lengths", "depth_percents", "controls"):
        if name in grid:
            grid[name] = tuple(grid[name])
    probe = NeedleProbe(needle=Needle(task, value, needles), **grid)
    laws = [attention] if attention is None or isinstance(attention, str) else list(attention)
    factors = [rope_theta_factor] if isinstance(rope_theta_factor, int | float) else list(rope_theta_factor)
    settings = Settings(dtype, device, batch_size, Path(output_path), fresh, trust_remote_code)
    runs = run_probe(probe, models, laws, rope_settings(rope_theta, factors, rope_scaling), settings)
    return load_results(*runs)
