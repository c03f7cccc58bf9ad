"""What the page says of prompts that a study chose by what was found before: they are no grid."""

from collections.abc import Iterator, Sequence

import pandas as pd
from markupsafe import Markup

from .context import Context
from .section import Section


class Chosen(Section[int]):
    """How many of the page's runs are rounds of reach."""

    place, lead_place = 0, 0

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[int]:
        rounds = sum(record.get("study") == "reach" for record in context.records)
        return [rounds] if rounds else []

    def tables(self, found: Sequence[int]) -> Iterator[str]:
        yield from sentences(*found)

    def lead(self, found: Sequence[int], context: Context) -> Markup:
        return context.lead("Chosen prompts", [[*sentences(*found)]])

    def page(self, found: Sequence[int], context: Context) -> Markup:
        return Markup("")


SECTION = Chosen()


def sentences(rounds: int) -> Iterator[str]:
    yield "These prompts are no grid: reach chose lengths and depths by what it had found."
    yield (
        f"{rounds} runs are rounds of `ssmax-eval reach`. Means over lengths or depths, and their intervals, are of what was chosen. "
        "The same command again, at no cost, writes the page that accounts for it."
    )
