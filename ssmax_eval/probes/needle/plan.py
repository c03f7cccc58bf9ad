"""The samples of a needle grid: each prompt by its length, depth and trial, and its controls."""

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Sample(NamedTuple):
    """One prompt of the plan; with the control it names the row it becomes."""

    context_length: int
    depth_percent: float
    trial: int
    control: str | None = None

    @property
    def name(self) -> str:
        return f"{self.control or 'grid'}/{self.context_length}/{self.depth_percent:g}/{self.trial}"


def grid_of(
    trials: int, context_lengths: Sequence[int], depth_percents: Sequence[float], controls: Collection[str]
) -> list[Sample]:
    """Return the samples of a grid, trials outermost, its controls after it."""
    grid = itertools.product(range(trials), context_lengths, depth_percents)
    samples = [Sample(length, depth, trial) for trial, length, depth in grid]
    if "no-needle" in controls:
        absent = itertools.product(range(trials), context_lengths)
        samples += [Sample(length, 0.0, trial, "no-needle") for trial, length in absent]
    if "needle-only" in controls:
        samples += [Sample(0, 0.0, trial, "needle-only") for trial in range(trials)]
    return samples
