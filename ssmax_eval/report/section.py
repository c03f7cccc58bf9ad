"""What a part of the page is: numbers, made once, and how they are shown on the page, in the terminal and as JSON."""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
from markupsafe import Markup

from .. import statistics
from ..errors import UserError
from .context import Context

log = logging.getLogger(__name__)
N = TypeVar("N")
TOP = Path(__file__).parents[1]


@dataclass(frozen=True)
class Table:
    """A table as text: a line of names, and lines of cells."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


class Section(Generic[N]):
    """A part of the page and of the terminal.

    place: where it stands, from the top. lead_place: where its lead does; one above 10 stands there only if nothing else leads.
    heading: what the page's own heading calls it, if anything. details: the columns of single rows (Row.details) that `numbers`
    takes, which rows lack otherwise. `numbers` makes what is shown, once for each thing that gets a heading of its own; the rest
    shows it. A section that only has `numbers` and `tables` shows its tables on the page too.
    """

    place: int = 100
    lead_place: int = 10
    heading: str = ""
    details: tuple[str, ...] = ()

    def numbers(self, rows: pd.DataFrame, context: Context) -> Sequence[N]:
        """Return what is shown of rows of its probe (statistics.with_series), nothing where they hold none of it."""
        raise NotImplementedError

    def tables(self, found: Sequence[N]) -> Iterator[Table | str]:
        """Yield the tables and lines of the terminal."""
        yield from ()

    def more_tables(self, found: Sequence[N]) -> Iterator[Table]:
        """Yield tables that are on the page and not in the terminal, for files."""
        yield from ()

    def summary(self, found: Sequence[N]) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {}

    def page(self, found: Sequence[N], context: Context) -> Markup:
        """Return the part of the page."""
        return context.render("report/templates/tables.html.j2", shown=[*self.tables(found)], heading=self.heading)

    def lead(self, found: Sequence[N], context: Context) -> Markup:
        """Return what stands at the top of the page, before all sections."""
        return Markup("")

    def data(self, found: Sequence[N]) -> dict[str, Any]:
        """Return what the page's script is given."""
        return {}

    def rendered(self, context: Context, **values: Any) -> Markup:
        """Fill the template that stands beside the section's file."""
        file = Path(inspect.getfile(type(self))).with_suffix(".html.j2")
        return context.render(file.relative_to(TOP).as_posix(), **values)


TOLERATED: tuple[type[Exception], ...] = (Exception,)  # of a section; the rest of the page is shown all the same
R = TypeVar("R")


@dataclass(frozen=True)
class Found:
    """A section and what it has to show; where it cannot, a line says so in its place."""

    section: Section[Any]
    numbers: Sequence[Any]
    failed: str = ""  # why there are no numbers

    def page(self, context: Context) -> Markup:
        return self._shown(lambda: self.section.page(self.numbers, context), in_its_place)

    def lead(self, context: Context) -> Markup:
        return self._shown(lambda: self.section.lead(self.numbers, context), lambda why: Markup(""))

    def data(self) -> dict[str, Any]:
        return self._shown(lambda: self.section.data(self.numbers), lambda why: {})

    def tables(self) -> list[Table | str]:
        return self._shown(lambda: [*self.section.tables(self.numbers)], lambda why: [why])

    def more_tables(self) -> list[Table]:
        return self._shown(lambda: [*self.section.more_tables(self.numbers)], lambda why: [])

    def summary(self) -> dict[str, Any]:
        return self._shown(lambda: self.section.summary(self.numbers), lambda why: {})

    def _shown(self, show: Callable[[], R], instead: Callable[[str], R]) -> R:
        if self.failed:
            return instead(self.failed)
        try:
            return show()
        except UserError:
            raise
        except TOLERATED as error:
            return instead(why_not(self.section, error))


def found_by(section: Section[Any], rows: pd.DataFrame, context: Context) -> Found | None:
    """Return what a section has to show of rows; None for nothing."""
    try:
        numbers = section.numbers(rows, context)
    except UserError:
        raise
    except TOLERATED as error:
        return Found(section, [], why_not(section, error))
    return Found(section, numbers) if numbers else None


def why_not(section: Section[Any], error: Exception) -> str:
    """Say that a section cannot show what it has, for a note too, and return it."""
    name = type(section).__module__.removeprefix("ssmax_eval.probes.").replace(".sections.", ", ")
    why = f"{name}: this part cannot be shown ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    log.warning("ssmax-eval: note: %s; the rows are kept, please report it", why, exc_info=error)
    return why


def in_its_place(why: str) -> Markup:
    return Markup("<section><p>{}</p></section>").format(why)


def by_task(rows: pd.DataFrame) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """Yield the prompts of each task: its number from 1, its name, its rows."""
    for number, (_, part) in enumerate(statistics.tasks(rows), 1):
        yield number, statistics.task_name(part), part


def records(tables: Iterable[pd.DataFrame]) -> list[dict[str, Any]]:
    """Return the lines of tables as JSON values, null for what is missing or infinite."""
    out: list[dict[str, Any]] = []
    for table in tables:
        known = table.replace([math.inf, -math.inf], math.nan)
        out += known.astype(object).where(known.notna(), None).to_dict("records")
    return out
