"""Settings of a model race: all read a few prompts of each length, and those that find most of a length read more of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import pandas as pd

from .. import statistics
from ..models.subjects import RunOptions
from ..probes import PROBES
from ..probes.needle.options import NeedleOptions
from ..readers.reader import Reader
from ..results import tables
from ..run import run_probes
from ..setting import Setting
from ..store import Run
from .asked import Asked

# of the trials, and at each length the settings that are left: most is read of what few prompts cannot tell apart
ROUNDS = ((1 / 16, None), (1 / 16, 6), (3 / 16, 3), (3 / 16, 2))


@dataclass
class Read:
    """A model's rows in settings that were read: runs, and the name by which each setting's rows are known.

    series: by setting, a name that tells it from all others; rows of fewer would be told apart by less.
    """

    asked: Asked
    options: RunOptions
    series: dict[Setting, str] = field(default_factory=dict)
    # a model is loaded once
    readers: dict[str, Reader] = field(default_factory=dict, repr=False)

    def __call__(self, grid: NeedleOptions, settings: Sequence[Setting]) -> list[Run]:
        """Run a needle grid on the model in settings, and return a run for each."""
        return self.probed("needle", grid, settings)

    def probed(self, name: str, options: object, settings: Sequence[Setting]) -> list[Run]:
        """Run a probe on the model in settings, and return a run for each."""
        models = self.asked.models
        return run_probes([PROBES[name].make(models, options)], models, settings, self.options, self.readers)

    def named(self, runs: Sequence[Run], settings: Sequence[Setting]) -> pd.DataFrame:
        """Return the rows of runs, one for each of the settings, with series."""
        rows, names = tables(runs), [self.series[setting] for setting in settings]
        return rows.assign(series=rows["run_id"].map(dict(zip((run.run_id for run in runs), names, strict=True))))


@dataclass(frozen=True)
class Race:
    """What a race read. rows: with series. left: by length, the settings that were left at the end. first, runs: of the first
    round, and of all."""

    rows: pd.DataFrame
    left: Mapping[int, Sequence[Setting]]
    first: Sequence[Run]
    runs: Sequence[Run]


def raced(read: Read, settings: Sequence[Setting]) -> Race:
    """Let settings race, and name them (read.series). Raises UserError."""
    asked, runs, ran, first = read.asked, [], [], []
    left: dict[int, Sequence[Setting]] = dict.fromkeys(asked.context_lengths, settings)
    rows = pd.DataFrame()
    for number, (share, keep) in enumerate(ROUNDS):
        if keep is not None:
            left = best_of(statistics.ranked(rows), left, read.series, keep)
        for lengths, some in by_lengths(left, settings):
            runs += read(asked.grid(share, number, lengths=lengths), some)
            ran += some
        if keep is None:
            first = [*runs]
            named = statistics.with_series(statistics.of_prompts(tables(first))).drop_duplicates("run_id")
            names = dict(zip(named["run_id"], named["series"].astype(str), strict=True))
            read.series |= {setting: names[run.run_id] for setting, run in zip(settings, first, strict=True)}
        rows = read.named(runs, ran)
    return Race(rows, left, first, runs)


def best_of(
    table: pd.DataFrame, left: Mapping[int, Sequence[Setting]], series: Mapping[Setting, str], keep: int
) -> dict[int, Sequence[Setting]]:
    """Return at each length the settings that ranked best, so many of those that are left there."""
    out: dict[int, Sequence[Setting]] = {}
    for length, some in left.items():
        order = [*table.loc[table["context_length"] == length, "series"]]
        # what has no score there, for want of memory say, is not in the table
        known = [each for each in some if series[each] in order]
        out[length] = sorted(known, key=lambda each: order.index(series[each]))[:keep]
    return out


def by_lengths(
    left: Mapping[int, Sequence[Setting]], settings: Sequence[Setting]
) -> Iterator[tuple[tuple[int, ...], list[Setting]]]:
    """Yield lengths and the settings that are left at just these: read together, a haystack's lengths are read once."""
    at = {each: tuple(length for length, some in left.items() if each in some) for each in settings}
    for lengths, some in groupby(sorted(settings, key=at.__getitem__), at.__getitem__):
        if lengths:
            yield lengths, [*some]
