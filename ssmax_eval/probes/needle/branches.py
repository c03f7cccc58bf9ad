"""Prompts of a trial as branches of their haystack: which ones a grid's lengths and depths foretell, and how they are read."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from ...data.needles import Asked
from ...data.prompts import Prompt
from ...mechanisms.layers import reads_on
from ...readers.answers import Score, last_part
from ...readers.forked import PACK_ROWS, tokens_of, walks
from ...readers.forked_proof import Forking
from ...readers.memory import BranchScorer, InMemory
from ...readers.reader import FORKED, InOrder, Reader
from ...readers.snapshots import Trail
from ...readers.transformers import TransformersReader
from ..attention.masses import HAYSTACK_TOKENS, haystack_ends

PAYS = 0.8  # of the tokens: a grid that reading it forked spares less of is read whole
BESIDE = 64  # tokens of needle, question and answer, about


# the indices of prompts that are read together, and what scores them
Forked = Iterator[tuple[list[int], Callable[[], list[Score]]]]


class Planned(Protocol):
    @property
    def context_length(self) -> int: ...
    @property
    def depth_percent(self) -> float: ...
    @property
    def trial(self) -> int: ...
    @property
    def control(self) -> str | None: ...


S = TypeVar("S", bound=Planned)


def shared(plan: Sequence[S], needle: Asked, masses: bool) -> dict[S, int]:
    """Return how many tokens of each sample's prompt another one has read, about; {} where reading so would not pay.

    needle: of some tasks only prompts of one length share their haystack, or all of it. masses: whether attention is looked at,
    and with it the last haystack tokens. The trunk of a trial counts as part of its longest prompt, of those the one that
    shares most.
    """
    tail = HAYSTACK_TOKENS if masses else 0
    groups: dict[Hashable, list[S]] = defaultdict(list)
    for sample in plan:
        if sample.control != "needle-only":
            groups[sample.trial, sample.context_length if needle.has_others else 0].append(sample)
    found: dict[S, int] = {}
    for group in groups.values():
        starts = {sample: start_of(sample, tail, needle.asks_all) for sample in group}
        first = max(group, key=lambda sample: (starts[sample], sample.context_length))
        found |= starts | {first: 0}
    whole = sum(sample.context_length for sample in found)
    return found if sum(found.values()) >= (1 - PAYS) * whole and whole else {}


def start_of(sample: Planned, tail: int, asks_all: bool) -> int:
    """Return where a prompt's own part begins, about: with its needle, or with its question."""
    haystack = max(0, sample.context_length - BESIDE)
    place = haystack if sample.control or asks_all else round(sample.depth_percent / 100 * haystack)
    return max(0, min(place, haystack - tail))


def pays(prompts: Sequence[Prompt], masses: bool) -> bool:
    """Tell whether reading prompts forked spares so many of their tokens as a grid's has to."""
    read = sum(tokens_of(walk, prompts) for walk in walks(prompts, [latest(prompt, masses) for prompt in prompts]))
    return read <= PAYS * sum(len(prompt.ids) for prompt in prompts)


def forking(reader: Reader, longest: int, needs: frozenset[str]) -> Forking:
    """Return how a reader reads prompts forked for what is needed, without changing a number of its model."""
    if not isinstance(reader, TransformersReader) or FORKED not in reader.gives:
        return Forking("its reader reads none so")
    return reader.forking(longest, needs)


def trials_of(plan: Sequence[S]) -> list[list[S]]:
    """Return the samples of each trial that have a haystack, in the plan's order."""
    found: dict[int, list[S]] = {}
    for sample in plan:
        if sample.control != "needle-only":
            found.setdefault(sample.trial, []).append(sample)
    return [found[trial] for trial in sorted(found)]


def branches(
    reader: Reader,
    score: InOrder,
    read: BranchScorer,
    prompts: list[Prompt],
    masses: bool,
    again: bool = False,
    by_snapshots: bool = False,
) -> Forked:
    """Yield the indices of the prompts of a trial that are read together, and what scores them.

    Which those are hangs on the tokens of all of the trial's prompts, and not on which of them are done. score: scores a prompt
    whole where memory runs out. read: scores them as branches in packs. masses: of which what every head does is wanted. again: whose
    rows of question and answer are read again, in batches of equal length. by_snapshots: each is read by itself, in order of depth.
    """
    assert isinstance(reader, TransformersReader)
    assert isinstance(score, InMemory)
    most = PACK_ROWS[reads_on(reader.model).type]
    # no more rows than the longest prompt has: some models count rows where they should count positions
    rows = min(most, max(len(prompt.ids) for prompt in prompts))
    for walk in walks(prompts, [latest(prompt, masses, again) for prompt in prompts]):
        trunk = walk.trunk
        if by_snapshots:
            trunk = Trail(trunk.ids, [branch.start for branch in walk.branches], keep_all=masses or again)
            packs = walk.in_order()
        else:
            packs = walk.batches(prompts, most) if again else walk.packs(prompts, rows)
        for pack in packs:
            indices = [branch.index for branch in pack]
            own, starts = [prompts[i] for i in indices], [branch.start for branch in pack]
            yield indices, partial(score.branches, read, own, starts, trunk)
        trunk.forget()  # the next one needs the memory


def latest(prompt: Prompt, masses: bool, again: bool = False) -> int:
    """Return where a prompt's own part begins at the latest, which holds every row that is looked at."""
    first = prompt.question_start if again else len(prompt.ids) - 1 - prompt.answer_length
    return last_part(first, haystack_ends([prompt]) if masses else [])
