"""What runs will cost, said before they start: prompts, tokens, operations, and how long this machine may take."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from .models.shape import Work, blank, work_of
from .models.subjects import RunOptions, Subject
from .plans import AS_TRAINED, PlannedRun, is_forked
from .probes.budget import cut_in_words
from .probes.kind import Probe
from .processes import Alone
from .progress import Progress, duration
from .readers.reader import GENERATE
from .rows import Fields
from .timing import at, time_forwards

# around what was timed: batches read faster than one prompt; masses, making prompts and others on the machine take time too
FASTER, SLOWER = 0.5, 2.0


@dataclass(frozen=True)
class Line:
    """What is left to do of one run at one context length; operations are None where the model's shape is unknown.

    tokens: that are read, those that prompts share once. forwards: the operations of a forward, and how many of those there
    are: rows that are read again are many short ones.
    """

    plan: PlannedRun
    context_length: int
    prompts: int
    tokens: int
    operations: float | None
    forwards: tuple[tuple[float, int], ...] = ()


def price(
    plans: Iterable[PlannedRun],
    options: RunOptions,
    loaded: dict[str, PreTrainedModel | None] | None = None,
    anew: Container[int] = (),
) -> list[Line]:
    """Return what is left of planned runs, a line for each run and context length.

    loaded: models at hand, by label. anew: runs that start over whatever the options say, by the id of their plan.
    """
    lines = []
    works: dict[str, Work | None] = {}
    for plan in plans:
        left: dict[int, Counter[Part]] = defaultdict(Counter)  # what prompts of a context length read
        model = (loaded or {}).get(plan.subject.label)
        fresh = options.fresh or id(plan) in anew
        done = set() if fresh else {row["sample"] for row in plan.run.rows() if row["error"] is None}
        finished = not fresh and plan.run.is_scored(plan.probe.rows_planned())
        prompts: dict[int, int] = defaultdict(int)
        tokens: dict[int, int] = defaultdict(int)
        forked = is_forked(plan, model, options.trust_remote_code)
        for sample in [] if finished else plan.probe.plan():
            if not done.issuperset(plan.probe.names(sample)):
                parts = parts_of(plan.probe, sample, forked)
                length = parts[0].stop
                left[length].update(parts)
                prompts[length] += 1
                tokens[length] += length - parts[0].start
        label = plan.subject.label
        if left and label not in works:
            works[label] = shape(plan.subject, options, model)
        for length, read in sorted(left.items()):
            work, rows = works[label], plan.probe.all_rows
            forwards: tuple[tuple[float, int], ...] = ()
            if work is not None:
                forwards = tuple((operations_of(work, Counter([part]), rows), count) for part, count in read.items())
            operations = None if work is None else sum(one * count for one, count in forwards)
            lines.append(Line(plan, length, prompts[length], tokens[length], operations, forwards))
    return lines


class Part(NamedTuple):
    """What is read of a sequence: its tokens [start, stop), behind those before them."""

    start: int
    stop: int


def parts_of(probe: Probe, sample: Any, forked: bool) -> list[Part]:
    """Return what a sample's rows take: of sequences that are read forked what no other sample's have read."""
    starts = probe.shared(sample) if forked else []
    return [Part(start, length) for start, length in zip_longest(starts, probe.reads(sample), fillvalue=0)]


def operations_of(work: Work, parts: Counter[Part], all_rows: bool) -> float:
    """Return the floating-point operations of reading so many parts of each kind."""
    return sum(
        count * (work.operations(part.stop, all_rows * part.stop) - (work.operations(part.start) if part.start else 0))
        for part, count in parts.items()
    )


def shape(each: Subject, options: RunOptions, loaded: PreTrainedModel | None = None) -> Work | None:
    """Return what a subject's forward multiplies, its weights loaded or not; None where only loading them could tell."""
    model = loaded or (each.loaded and each.loaded[0])
    if model is None and each.source is not None:
        model = blank(each.source, options.trust_remote_code)
    return None if model is None else work_of(model)


class Forecast:
    """What is said of runs on stderr: what they cost, when a model is first about to be run, and how far all of them are."""

    def __init__(
        self, plans: Sequence[PlannedRun], options: RunOptions, processes: Alone, anew: Container[int] = ()
    ) -> None:
        self.plans, self.options, self.processes, self.anew = plans, options, processes, anew
        self.progress: Progress | None = None
        self.in_operations = True
        self.to_come: set[int] = set()  # runs, by the id of their plan

    @contextmanager
    def __call__(
        self, plan: PlannedRun, model: PreTrainedModel | None, done: Iterable[str]
    ) -> Iterator[Callable[[Sequence[Fields]], None]]:
        """Run a block that runs a plan with its model, and yield what is told of each batch of rows. done: samples that were stored."""
        if self.progress is None:
            self.progress = self.begin(plan.subject, model)
        progress, probe, stored = self.progress, plan.probe, set(done)
        left: dict[
            str, tuple[Any, set[str]]
        ] = {}  # samples to come, by the names of their rows, each with those that it lacks
        for sample in probe.plan():
            lacks = {name for name in probe.names(sample) if name not in stored}
            left |= dict.fromkeys(lacks, (sample, lacks))
        work = shape(plan.subject, self.options, model) if self.in_operations else None
        forked = is_forked(plan, model, self.options.trust_remote_code)
        name = plan.subject.label if plan.setting in AS_TRAINED else f"{plan.subject.label}, {plan.setting}"

        def see(rows: Sequence[Fields]) -> None:
            for row in rows:
                # a document whose rows were stored in part comes whole again
                sample, lacks = left.pop(row["sample"], (None, {"stored"}))
                lacks.discard(row["sample"])
                if lacks:
                    continue
                parts = parts_of(probe, sample, forked)
                own = parts[0].stop - parts[0].start
                amount = own if work is None else operations_of(work, Counter(parts), probe.all_rows)
                self.processes.did(amount / progress.total if progress.total else 0.0)
                progress.advance(amount, name, f"{parts[0].stop:,} tokens")

        try:
            yield see
            self.to_come.discard(id(plan))
        except BaseException:
            self.to_come.clear()
            raise
        finally:
            if not self.to_come:
                progress.close()

    def begin(self, each: Subject, model: PreTrainedModel | None) -> Progress:
        """Say the cost of all that is left, and return the progress of it."""
        lines = price(self.plans, self.options, {each.label: model}, self.anew)
        if lines:  # else all rows are there, and only the record is not
            times = seconds(model, shape(each, self.options, model), lines, self.processes.count)
            logging.getLogger(__name__).warning("ssmax-eval: cost: %s", in_words(lines, times))
        self.to_come = {id(line.plan) for line in lines}
        operations = total(lines)
        self.in_operations = operations is not None
        whole = sum(line.tokens for line in lines) if operations is None else operations
        return Progress(whole, lambda: whole * self.processes.did_elsewhere())


def in_words(lines: Sequence[Line], times: tuple[float, float] | None = None) -> str:
    """Say what lines cost in all: models and settings, prompts, tokens, operations, and seconds where they can be told."""
    if not lines:
        return "nothing; all runs are finished"
    settings = {(line.plan.subject.label, str(line.plan.setting)) for line in lines}
    models = {label for label, _ in settings}
    most = max(sum(label == each for label, _ in settings) for each in models)
    counts: dict[str, int] = defaultdict(int)
    for line in lines:
        counts[line.plan.probe.sample_is] += line.prompts
    told = [
        f"{plural(len(models), 'model')} x {plural(most, 'setting')}",
        *(plural(count, what) for what, count in counts.items()),
        f"{sum(line.tokens for line in lines):,} tokens, {max(line.context_length for line in lines):,} in the longest",
    ]
    operations = total(lines)
    told.append("operations unknown" if operations is None else f"{operations:.1e} floating-point operations")
    if times:
        told.append(f"about {duration(times[0])} to {duration(times[1])} on this machine")
    told += cuts(lines)
    return "; ".join(told)


def cuts(lines: Iterable[Line]) -> list[str]:
    """Say what --limit-tokens left of each plan."""
    probes = {id(line.plan.probe): line.plan.probe for line in lines}
    return list(dict.fromkeys(filter(None, map(cut_in_words, probes.values()))))  # alike for probes of one grid


def total(lines: Iterable[Line]) -> float | None:
    """Return the operations of lines; None where those of one are unknown."""
    parts = [line.operations for line in lines]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def by_length(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the cost by probe and context length, over models and settings; share is of all operations, else of all tokens."""
    whole, whole_tokens = total(lines), sum(line.tokens for line in lines)
    grouped: dict[tuple[str, int], list[Line]] = defaultdict(list)
    for line in lines:
        grouped[line.plan.probe.name, line.context_length].append(line)
    out = []
    for (probe, length), part in grouped.items():
        operations, tokens = total(part), sum(line.tokens for line in part)
        out.append(
            {"probe": probe, "context_length": length, "prompts": sum(line.prompts for line in part), "tokens": tokens}
            | {"operations": operations, "share": operations / whole if operations and whole else tokens / whole_tokens}
        )
    return out


def seconds(
    model: PreTrainedModel | None, work: Work | None, lines: Sequence[Line], processes: int = 1
) -> tuple[float, float] | None:
    """Return the least and most seconds that lines may take so many processes, from short timed forwards of one model.

    Other models are taken to do as many operations a second. None where that would be a guess: generated answers, unknown shapes.
    """
    if (
        model is None
        or work is None
        or total(lines) is None
        or any(GENERATE in each.plan.probe.needs for each in lines)
    ):
        return None
    timed = time_forwards(model, max(line.context_length for line in lines))
    known = [(work.operations(length), took) for length, took in timed]
    if not known:
        return None
    # a forward takes some time however short it is, on an accelerator most of all
    alone = sum(count * at(one, known) for line in lines for one, count in line.forwards)
    best = min(took / operations for operations, took in known)
    return FASTER * best * (total(lines) or 0) / processes, SLOWER * alone / processes


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
