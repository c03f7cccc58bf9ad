"""How far a model reads, to a stated precision: rounds of needle prompts, each where it tells most for its tokens."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..cost import Forecast
from ..errors import UserError
from ..models.subjects import RunOptions, subjects
from ..plans import as_it_is
from ..probes import PROBES
from ..probes.by_model import default_lengths, default_task
from ..probes.defaults import DEPTH_PERCENTS
from ..probes.needle.options import NeedleOptions
from ..processes import together
from ..readers.reader import Reader
from ..results import tables
from ..run import run_probes
from ..setting import Setting
from ..statistics.crossing import Crossing, Ladder
from ..statistics.depth_effects import Counts
from ..store import Run
from .rounds import Cell, Narrowed, narrowing, scan

log = logging.getLogger(__name__)
LIMIT = 4000  # tokens that are read at most, in shortest lengths, for each series
MOST_PRECISE = 1.05
SHORT = 1  # places of the ladder without which there is nothing to look for
OUT_OF_MEMORY = "out of memory"  # as rows say it


@dataclass(frozen=True)
class Asked:
    """What is asked about: models in settings, between which lengths, how precisely.

    models: references, {label: reference or (model, tokenizer)}, or one of these. lengths: the first and the last, tokens; those
    between are chosen. precision: both ends of an effective length's 95% interval are within this factor of its middle, 1.05 to 4.
    band: of two series, a ratio of effective lengths that is within this factor of 1 does not matter; above 1. limit_tokens: read
    at most, in all. Raises UserError.
    """

    models: Any
    settings: tuple[Setting, ...] = (Setting(),)
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = DEPTH_PERCENTS
    precision: float = 1.25
    band: float = 1.5
    limit_tokens: int | None = None
    task: str | None = None
    haystack: str = "text"
    seed: int = 0

    def __post_init__(self) -> None:
        if not MOST_PRECISE <= self.precision <= 4:
            raise UserError(f"precision {self.precision:g}: allowed are factors from {MOST_PRECISE:g} to 4")
        if not self.band > 1:
            raise UserError(f"band {self.band:g}: allowed are factors above 1")
        if self.ladder.longest <= self.ladder.precision**2 * self.ladder.shortest:
            raise UserError(
                f"context lengths {self.ladder.shortest} to {self.ladder.longest}: the longest has to be more than "
                f"{self.precision**2:.3g} times the shortest, or nothing is left to find"
            )
        least = sum(self.ladder.lengths[place] * len(depths) * trials for place, depths, trials in scan(self.ladder))
        if self.limit_tokens is not None and self.limit_tokens < least * len(self.series):
            raise UserError(
                f"limit tokens {self.limit_tokens:,}: the first look at {len(self.series)} series takes "
                f"{least * len(self.series):,}; give at least that"
            )

    @cached_property
    def ladder(self) -> Ladder:
        lengths = self.lengths or default_lengths(self.models)
        if min(lengths) < 1:
            raise UserError(f"context length {min(lengths)}: allowed are whole numbers of tokens from 1")
        return Ladder(
            min(lengths), max(lengths), tuple(sorted({float(depth) for depth in self.depths})), self.precision
        )

    @cached_property
    def series(self) -> dict[str, tuple[str, Any, Setting]]:
        """The label, the model and the setting of each series, by its name. A setting that changes nothing is the model as it is."""
        found: dict[str, tuple[str, Any, Setting]] = {}
        for each in subjects(self.models):
            model = self.models[each.label] if isinstance(self.models, dict) else each.loaded or each.reference
            for setting in self.settings:
                own = as_it_is(each, setting)
                name = each.label if own == Setting() else f"{each.label} ({own})"
                found[name] = (each.label, model, own)
        return found

    @cached_property
    def own_task(self) -> str:
        return self.task or default_task(self.models)

    @property
    def most_tokens(self) -> int:
        return self.limit_tokens or LIMIT * self.ladder.shortest * len(self.series)

    def cell(self, cell: Cell, visit: int) -> NeedleOptions:
        """Return the grid of a round. Its seed is its own, so that its trials are of no other round of any length and depth."""
        place, depths, trials = cell
        length, percents = self.ladder.lengths[place], tuple(self.ladder.depths[depth] for depth in depths)
        longest = self.ladder.longest  # which a mechanism is put on layers for, so that rows of another one are others
        digest = hashlib.sha256(f"{self.seed}/reach/{longest}/{length}/{percents}/{trials}/{visit}".encode()).digest()
        return NeedleOptions(
            context_lengths=(length,),
            depth_percents=percents,
            trials=trials,
            seed=int.from_bytes(digest[:4], "big"),
            haystack=self.haystack,
            task=self.own_task,
        )


@dataclass(frozen=True)
class Reached:
    """What was found: what was known after each round, the last at the end, and the runs that hold its rows."""

    asked: Asked
    rounds: Sequence[Narrowed]
    runs: Sequence[Run] = field(repr=False)

    @property
    def end(self) -> Narrowed:
        return self.rounds[-1]

    @property
    def ratio(self) -> tuple[float, float] | None:
        """The 95% interval of how many times further the first of two series reaches."""
        if len(self.end.crossings) != 2 or any(each.finds_nothing for each in self.end.crossings.values()):
            return None
        one, other = self.end.crossings.values()
        return one.against(other)


def reach(asked: Asked, options: RunOptions) -> Reached:
    """Read prompts in rounds until the effective lengths are as precise as asked; a stopped study goes on. Raises UserError."""
    runs: list[Run] = []
    readers: dict[str, Reader] = {}  # a model is loaded once
    series, options = asked.series, replace(options, reaches=asked.ladder.longest, study="reach")
    log.warning(
        "ssmax-eval: cost: %d series, at most %s tokens in all, %s in the longest; fewer where less tells enough",
        len(series),
        f"{asked.most_tokens:,}",
        f"{asked.ladder.longest:,}",
    )

    with together(options.output_path) as processes:

        def ask(name: str, cell: Cell, visit: int) -> Counts:
            label, model, setting = series[name]
            grid = asked.cell(cell, visit)
            with unsaid():
                (run,) = run_probes(
                    [PROBES["needle"].make({label: model}, grid)], {label: model}, [setting], options, readers
                )
            runs.append(run)
            # the first process has all rows; the others may be ahead of it
            found = processes.same(counted(run, asked.ladder, cell).tolist() if processes.is_first else None)
            return np.array(found)

        rounds = []
        for known in narrowing(asked.ladder, [*series], ask, asked.most_tokens, asked.band):
            rounds.append(known)
            log.warning("ssmax-eval: reach: %s", "; ".join(f"{name} {in_tokens(each)}" for name, each in known.crossings.items())
                        + f"; {sum(known.tokens.values()):,} tokens read")  # fmt: skip
    return Reached(asked, rounds, runs)


def counted(run: Run, ladder: Ladder, cell: Cell) -> Counts:
    """Return right answers and prompts of a round by depth, no prompts where they do not fit into memory. Raises UserError."""
    place, depths, _ = cell
    rows = tables([run])
    known = rows[rows["correct"].notna()]
    length, error = ladder.lengths[place], rows["error"].iloc[0]
    if known.empty and (place <= SHORT or error != OUT_OF_MEMORY):
        raise UserError(f"reach: no prompt of {length} tokens has a score ({error})")
    if known.empty:
        log.warning(
            "ssmax-eval: note: reach: %s tokens do not fit into memory; shorter prompts are read", f"{length:,}"
        )
    by_depth = known.groupby("depth_percent")["correct"]
    at = [ladder.depths[depth] for depth in depths]
    sums, sizes = by_depth.sum().astype(float), by_depth.size()
    return np.array([sums.reindex(at, fill_value=0.0), sizes.reindex(at, fill_value=0)], float)


@contextmanager
def unsaid() -> Iterator[None]:
    """Run a block without the cost and the progress of its runs: of many small ones, what each round found is said instead."""
    cost, bars = logging.getLogger(Forecast.__module__), os.environ.get("TQDM_DISABLE")
    level = cost.level
    cost.setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        cost.setLevel(level)
        os.environ.pop("TQDM_DISABLE")
        os.environ.update({} if bars is None else {"TQDM_DISABLE": bars})


def in_tokens(found: Crossing) -> str:
    """Write an effective length with its interval."""
    if found.finds_nothing:
        return "finds next to nothing at the shortest length"
    low, high = found.interval
    longest = found.ladder.lengths[-1]
    if high > longest:
        return f"at least {low:,.0f}" + (f" (≥ {longest:,} is possible)" if low < longest else "")
    return f"{found.effective_length:,.0f} ({low:,.0f} to {high:,.0f})"
