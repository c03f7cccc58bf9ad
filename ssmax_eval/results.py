"""Find stored runs below a path, ours and lm-eval's of our tasks, packed ones too, and load their rows."""

from pathlib import Path
from types import NoneType
from typing import Any, get_args

import numpy as np
import pandas as pd

from .errors import UserError
from .harness.samples import find_samples
from .packs import SUFFIX, packed_runs
from .probes import schema_of
from .rows import Row, columns
from .store import Run


def find_runs(*paths: str | Path) -> list[Run]:
    """Return the runs at or below each path, by folder name, those in packs, and lm-eval's samples of our tasks as runs.

    Raises UserError for none.
    """
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"run {str(path)!r}: no such path; give a run's folder, a folder of runs or a pack")
        folder = path.parent if path.name in ("rows.jsonl", "run.json") else path
        found = [Run(rows.parent, schema_of(rows.parent.parent.name)) for rows in sorted(folder.rglob("rows.jsonl"))]
        found += find_samples(path)
        packs = [path] if path.is_file() and path.suffix == SUFFIX else sorted(folder.rglob(f"*{SUFFIX}"))
        found += [run for pack in packs for run in packed_runs(pack)]
        if not found:
            raise UserError(f"run {str(path)!r}: no rows.jsonl in or below it; give a run's folder or a folder of runs")
        runs |= {run.folder.resolve(): run for run in found}
    return list(runs.values())


def load_results(*paths: str | Path | Run) -> pd.DataFrame:
    """Return the rows of all runs at or below the paths as one table, columns as results/README.md names them.

    Each row has the run_id of its run and the name of its probe. A sample that could not be scored has correct = <NA>
    (nullable boolean), never False; its reason is in `error`. Raises UserError for rows that are not as their probe says, and
    for rows and a record that do not belong together.
    """
    runs = [run for path in paths for run in ([path] if isinstance(path, Run) else find_runs(path))]
    shared: dict[str, str] = {}
    tables = [table_of(run, shared) for run in runs]
    return pd.concat([table for table in tables if len(table)] or tables or [pd.DataFrame()], ignore_index=True)


def table_of(run: Run, shared: dict[str, str]) -> pd.DataFrame:
    """Return a run's rows as a table. shared: texts met before, so that equal ones are kept once."""
    rows = run.typed_rows()
    run.belong(rows)
    if run.schema is Row:  # of a probe that is not known here: its own columns as they are
        return pd.DataFrame(run.rows()).assign(run_id=run.run_id, probe=run.probe)
    found = {name: column([getattr(row, name) for row in rows], kind, shared) for name, kind in types_of(run.schema)}
    return pd.DataFrame(found).assign(run_id=run.run_id, probe=run.probe)


def types_of(schema: type[Row]) -> list[tuple[str, Any]]:
    return [(name, kind) for name, (kind, _) in columns(schema).items()]


def column(values: list[Any], kind: Any, shared: dict[str, str]) -> Any:
    """Return values as a column of their type: what is missing is NaN, NA or None."""
    kinds = {*get_args(kind)} or {kind}
    plain = {getattr(each, "__origin__", each) for each in kinds} - {NoneType}
    if plain == {bool} and NoneType in kinds:
        return pd.array(values, dtype="boolean")
    if plain == {float}:
        return np.array(values, dtype=float)
    if plain == {str} and len(values):
        return pd.array([value if value is None else shared.setdefault(value, value) for value in values], dtype="str")
    return values
