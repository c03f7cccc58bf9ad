"""Which prompts are asked next to find how far a model reads, and when that is known well enough; nothing here reads a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..statistics.crossing import Crossing, Ladder, crossing
from ..statistics.depth_effects import Counts

ROUND = (4, 2)  # depths and, at least, trials of a round, at one length
GROWTH = 0.05  # of what was read of the series before: a round's tokens, where that is more
SCAN = 3  # depths of the first rounds, which ask each octave, so that what a dip hides is seen
TRIALS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of fixed grids that are compared with
Cell = tuple[int, tuple[int, ...], int]  # place of the length, places of the depths, trials
# of a series, a cell and how often it was asked before: right answers and prompts by depth
Ask = Callable[[str, Cell, int], Counts]


def scan(ladder: Ladder) -> list[Cell]:
    """Return the first cells: one trial at every octave and at the longest length, at depths spread evenly."""
    steps, count = max(1, round(1 / ladder.octaves)), len(ladder.depths)
    few = min(SCAN, count)
    depths = tuple(round((i + 0.5) * count / few - 0.5) for i in range(few))
    last = len(ladder.lengths) - 1
    return [(place, depths, 1) for place in [*range(0, last, steps), last]]


@dataclass(frozen=True)
class Narrowed:
    """What is known after a round: of each series the posterior and the tokens read; counts: right answers and prompts."""

    crossings: Mapping[str, Crossing]
    tokens: Mapping[str, int]
    counts: Mapping[str, Counts] = field(repr=False)


def narrowing(ladder: Ladder, series: Sequence[str], ask: Ask, limit_tokens: int, band: float) -> Iterator[Narrowed]:
    """Yield what is known after each round, the first after the scan, until it is enough or the next round would pass the limit.

    The series that is known least precisely is asked next. Everything is decided by the rows before. A length of which `ask`
    gives no prompt does not fit into memory: the ladder of its series ends below it.
    """
    ladders = dict.fromkeys(series, ladder)
    counts = {name: ladder.nothing() for name in series}
    visits: dict[tuple[str, Cell], int] = {}
    tokens = dict.fromkeys(series, 0)

    def read(name: str, cell: Cell) -> None:
        place, depths, _ = cell
        visit = visits[name, cell] = visits.get((name, cell), -1) + 1
        found = ask(name, cell, visit)
        if not found[1].any():  # and nothing longer will fit
            ladders[name] = replace(ladder, kept=place)
            counts[name] = counts[name][:, :place]
            return
        counts[name][:, place, list(depths)] += found
        tokens[name] += ladder.lengths[place] * int(found[1].sum())

    for name in series:
        for cell in scan(ladder):
            if cell[0] < len(ladders[name].lengths):
                read(name, cell)
    known = {name: crossing(ladders[name], counts[name]) for name in series}
    while True:
        yield Narrowed(dict(known), dict(tokens), {name: each.copy() for name, each in counts.items()})
        left = [name for name in series if not (known[name].precise or known[name].finds_nothing)]
        if not left or (len(series) == 2 and settled(known[series[0]].against(known[series[1]]), band)):
            return
        name = max(left, key=lambda each: round(known[each].spread, 6))
        place, depths = known[name].next_cells(ROUND[0])
        one = len(depths) * ladder.lengths[place]  # tokens of a trial
        trials = max(ROUND[1], int(GROWTH * tokens[name] / one))
        if sum(tokens.values()) + trials * one > limit_tokens:
            return
        read(name, (place, depths, trials))
        known[name] = crossing(ladders[name], counts[name])


def settled(ratio: tuple[float, float], band: float) -> bool:
    """Tell whether the interval of a ratio excludes 1, or lies inside the band."""
    low, high = ratio
    return low >= 1 or high <= 1 or (low >= 1 / band and high <= band)


def fixed_grid(found: Crossing) -> tuple[int, int] | None:
    """Return tokens and trials of the cheapest fixed grid that would be as precise as this if each cell came out as expected.

    Of lengths a step or two of the ladder apart, all depths; None where not even the most trials are enough.
    """
    ladder, grids = found.ladder, []
    for every in (1, 2):
        places = sorted({*range(0, len(ladder.lengths), every), len(ladder.lengths) - 1})
        for trials in TRIALS:
            counts = ladder.nothing()
            counts[1][places] = trials
            counts[0][places] = trials * found.accuracy[places, None]
            if crossing(ladder, counts).spread <= max(found.spread, ladder.precision**2) * (1 + 1e-9):
                grids.append((trials * len(ladder.depths) * sum(ladder.lengths[place] for place in places), trials))
                break
    return min(grids) if grids else None
