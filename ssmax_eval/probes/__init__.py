"""The probes, a folder each. PROBES is the only list of them: every folder here that says what it is."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from ..rows import TOLD_BY, Row
from .kind import Kind

if TYPE_CHECKING:
    import pandas as pd

PROBES: dict[str, Kind[Any]] = {
    kind.name: kind
    for kind in sorted(
        (
            importlib.import_module(f"{__name__}.{folder.name}").PROBE
            for folder in pkgutil.iter_modules(__path__)
            if folder.ispkg
        ),
        key=lambda kind: (kind.place, kind.name),
    )
}

TOLD_BY.update({kind.name: kind.schema.told_by for kind in PROBES.values()})


def schema_of(probe: str) -> type[Row]:
    """Return the schema of a probe's rows; of one that is not known here what every row tells."""
    return PROBES[probe].schema if probe in PROBES else Row


def families() -> list[list[Kind[Any]]]:
    """Return the probes, those together whose rows are of one kind: a schema that is told by the same column."""
    out: dict[str, list[Kind[Any]]] = {}
    for kind in PROBES.values():
        out.setdefault(kind.name if kind.schema.told_by == Row.told_by else kind.schema.told_by, []).append(kind)
    return list(out.values())


def rows_of(kinds: list[Kind[Any]], rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows that are of one of these probes: by their probe, or where they do not tell it by their columns."""
    from ..statistics.kinds import are_of  # late: pandas takes as long as the help of the command line

    schema = kinds[0].schema
    return rows[are_of(rows, [kind.name for kind in kinds], "" if schema.told_by == Row.told_by else schema.told_by)]
