"""Probes from what a user gives: what is left out hangs on the models (defaults.py)."""

from collections.abc import Sequence
from typing import Any

from ..data.needles import Needle
from .defaults import default_lengths, default_task, default_window
from .loss import LossProbe
from .needle import NeedleProbe


def needle_probe(
    models: Any,
    trust_remote_code: bool = False,
    *,
    context_lengths: Sequence[int] | None = None,
    task: str | None = None,
    value: str = Needle.value,
    needles: int = Needle.needles,
    **fields: Any,
) -> NeedleProbe:
    """Return a needle grid for models; fields are NeedleProbe's. Raises UserError."""
    kind = Needle(task or default_task(models), value, needles)
    if context_lengths is None:
        context_lengths = default_lengths(models, trust_remote_code)
    fields |= {name: tuple(fields[name]) for name in ("depth_percents", "controls") if name in fields}
    return NeedleProbe(context_lengths=tuple(context_lengths), needle=kind, **fields)


def loss_probe(
    models: Any,
    trust_remote_code: bool = False,
    *,
    context_length: int | None = None,
    window: int | None = None,
    **fields: Any,
) -> LossProbe:
    """Return a loss probe for models, as long as the needle goes; fields are LossProbe's. Raises UserError."""
    if context_length is None:
        context_length = default_lengths(models, trust_remote_code)[-1]
    return LossProbe(
        context_length=context_length, window=default_window(models) if window is None else window, **fields
    )
