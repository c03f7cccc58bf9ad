"""RULER's variable tracking: a chain of assignments in noise, and an example in front of it."""

import random
import string
from itertools import pairwise

from .drawn import Count, Draws, Text, beginning
from .tasks import EXAMPLE_TOKENS, HOPS, NOISE, VT, VT_PREFIX

SHOWN = 5  # lines of noise by which the example grows
LETTERS, LETTERS_SHOWN = 5, 3  # of a variable's name, in the text and in the example


class Tracing:
    """One prompt of variable tracking."""

    def __init__(self, draws: Draws) -> None:
        rng = draws.rng()
        self.draws = draws
        self.example = example(rng, draws.task.to_write, draws.count)
        self.chain, self.references, self.value = chain(rng, LETTERS)
        self.answer = f"  {' '.join(self.references)}"  # two spaces, as the example has them
        self.least = len(self.chain)

    def text(self, size: int, extra: int = 0) -> Text:
        """Return the text of so many lines of noise."""
        tail = beginning(NOISE, extra, self.draws.count) if extra else ""
        context = hidden(self.draws.rng("places"), self.chain, size, tail)
        before, behind = VT.split("{context}")
        prefix = VT_PREFIX.format(count=HOPS + 1, value=self.value)
        return Text(self.example + before, context, behind.format(value=self.value), prefix)


def chain(rng: random.Random, letters: int) -> tuple[list[str], list[str], str]:
    """Draw a chain: its assignments, its variables, and the value of all."""
    names: dict[str, None] = {}
    while len(names) <= HOPS:
        names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    variables = [*names]
    value = str(rng.randrange(10_000, 99_999))
    first = f"VAR {variables[0]} = {value}"
    return [first, *(f"VAR {new} = VAR {old} " for old, new in pairwise(variables))], variables, value


def hidden(rng: random.Random, assignments: list[str], size: int, tail: str = "") -> str:
    """Return assignments in their order among lines of noise."""
    places = sorted(rng.sample(range(size), len(assignments)))
    lines = [f"{NOISE}\n"] * size + ([f"{tail}\n"] if tail else [])
    for moved, (place, assignment) in enumerate(zip(places, assignments, strict=True)):
        lines.insert(place + moved, assignment)
    return " ".join(lines).replace(". \n", ".\n")


def example(rng: random.Random, to_write: int, count: Count) -> str:
    """Return an example with its answer, as many lines of noise in it as EXAMPLE_TOKENS hold by steps of SHOWN."""
    assignments, variables, value = chain(rng, LETTERS_SHOWN)
    prefix = VT_PREFIX.format(count=HOPS + 1, value=value)
    seed, text = rng.random(), ""
    for size in range(SHOWN, EXAMPLE_TOKENS, SHOWN):
        asked = VT.format(context=hidden(random.Random(seed), assignments, size), value=value)
        longer = f"{asked} {prefix}  {' '.join(variables)}\n\n\n\n"
        if text and count(longer) + to_write > EXAMPLE_TOKENS:
            break
        text = longer
    return text
