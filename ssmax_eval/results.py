"""Find stored runs below a path, ours and lm-eval's of our tasks, packed ones too, and load their rows."""

import gc
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import numpy as np
import pandas as pd
from msgspec.structs import astuple

from .data.reading import MADE_HERE
from .disk import HALF
from .errors import UserError
from .harness.samples import find_samples
from .packs import SUFFIX, packed_runs
from .probes import schema_of
from .rows import Row, columns
from .statistics.series import NEEDED, with_series
from .store import WHOSE, Run, values_of

log = logging.getLogger(__name__)
KEY = ["run_id", "sample"]  # of a row among those of several runs


def find_runs(*paths: str | Path) -> list[Run]:
    """Return the runs at or below each path, by folder name, those in packs, and lm-eval's samples of our tasks as runs.

    A run that is there twice, in its folder and in a pack, is one. Raises UserError for none.
    """
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"run {str(path)!r}: no such path; give a run's folder, a folder of runs or a pack")
        folder = path.parent if path.name in ("rows.jsonl", "run.json") else path
        files = [
            rows
            for rows in sorted(folder.rglob("rows.jsonl"))
            if rows.is_file() and not rows.parent.name.startswith(HALF)
        ]
        found = [Run(rows.parent, schema_of(Run(rows.parent).probe)) for rows in files] + find_samples(path)
        if path.is_file() and path.suffix.lower() == SUFFIX:
            found += packed_runs(path)
        else:
            found += [
                run
                for pack in sorted(folder.rglob("*.[zZ][iI][pP]"))
                if pack.is_file()
                for run in packed_by_the_way(pack)
            ]
        if not found:
            raise UserError(f"run {str(path)!r}: no rows.jsonl in or below it; give a run's folder or a folder of runs")
        runs |= {run.folder.resolve(): run for run in found}
    return once_each(runs.values())


def packed_by_the_way(pack: Path) -> list[Run]:
    """Return the runs of a file that nobody named and that is called as a pack is; none, with a note, where it is no pack."""
    try:
        return packed_runs(pack)
    except UserError as error:
        log.warning("ssmax-eval: note: %s; it is left out", error)
        return []


def once_each(runs: Iterable[Run]) -> list[Run]:
    """Return runs without those that are there already: of one id, which tells all that decides its rows, the first complete one."""
    out: dict[tuple[str, str], Run] = {}
    for run in runs:
        key = run.probe, run.run_id
        if key not in out or (run.is_complete and not out[key].is_complete):
            out[key] = run
    return list(out.values())


def load_results(*paths: str | Path | Run) -> pd.DataFrame:
    """Return the rows of all runs at or below the paths as one table, columns as results/README.md names them.

    Each row has the run_id of its run, the name of its probe, and its `series` (statistics.with_series), in which each prompt
    is once. A sample that could not be scored has correct = <NA> (nullable boolean), never False; its reason is in `error`.
    Raises UserError for rows that are not as their probe says, and for rows and a record that do not belong together.
    """
    rows = tables(once_each(run for path in paths for run in ([path] if isinstance(path, Run) else find_runs(path))))
    return (
        with_series(rows) if {*NEEDED} <= {*rows} else rows
    )  # rows of a probe that is not known here may name no model


def tables(runs: Sequence[Run], details: Collection[str] | None = None) -> pd.DataFrame:
    """Return the rows of runs as one table. details: which columns of single rows (Row.details) it has; None for all."""
    shared: dict[str, str] = {}
    names = texts_told_apart(runs)
    with no_collection():
        found = [table_of(run, shared, names.get(run.run_id), details) for run in runs]
    kept = [table for table in found if len(table)] or found[:1] or [pd.DataFrame()]
    del found
    if len({tuple(table) for table in kept}) > 1:
        return pd.concat(kept, ignore_index=True)
    # a column at a time, or all would be there twice
    return pd.DataFrame({name: joined([table.pop(name).array for table in kept]) for name in list(kept[0])}, copy=False)


def details_of(runs: Sequence[Run], rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a table that has not all details with all of them, read again; a run that is there twice is one."""
    wanted = {run_id: set(part) for run_id, part in rows.groupby("run_id", sort=False)["sample"]}
    shared: dict[str, str] = {}
    names = texts_told_apart(runs)
    with no_collection():
        found = [
            table_of(run, shared, names.get(run.run_id), wanted=wanted[run.run_id])
            for run in runs
            if run.run_id in wanted
        ]
    return with_details(pd.concat(found, ignore_index=True), rows)


def with_details(told: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with all columns of a table of them: those that they lack, and those that only some of them have."""
    told = last_of_each(told, KEY)
    rest = rows[[name for name in rows if name in KEY or name not in told]]
    return rest.merge(told, on=KEY, how="left", validate="many_to_one").set_index(rows.index)


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's collector of cycles from looking at a million rows again and again while they are made; none has any."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Let Python's collector of cycles look less often: on a page of many rows it takes a sixth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def texts_told_apart(runs: Iterable[Run]) -> dict[str, str]:
    """Return by run id what to call the texts that have a name in common and are not the same: `name (hash)`.

    A file is called by its name alone, and two folders may have one of that name, or it was edited between two runs. A text
    that is made here has no hash and keeps its name; one of that name that was read from a file never has it.
    """
    texts: dict[tuple[str, str], dict[str, str | None]] = {}
    for run in runs:
        told = run.record().get("parameters", {})
        for what in ("haystack", "text"):
            if told.get(what) and f"{what}_sha256" in told:
                texts.setdefault((what, told[what]), {})[run.run_id] = told[f"{what}_sha256"]
    return {
        run_id: f"{name} ({sha[:6]})"
        for (_, name), by_run in texts.items()
        if len({*by_run.values()}) > 1 or name in MADE_HERE
        for run_id, sha in by_run.items()
        if sha is not None
    }


def table_of(
    run: Run,
    shared: dict[str, str],
    text: str | None = None,
    details: Collection[str] | None = None,
    wanted: set[str] | None = None,
) -> pd.DataFrame:
    """Return a run's rows as a table.

    shared: texts met before, so that equal ones are kept once. text: what its text is called among those of other runs, None for
    as it is. details: as `tables` takes them. wanted: samples, None for all.
    """
    if run.schema is Row:  # of a probe that is not known here: its own columns as they are
        rows = run.rows()
        run.belong(len(rows), values_of(rows))
        return pd.DataFrame(rows).assign(run_id=run.run_id, probe=run.probe)
    schema = run.schema
    kinds = {
        name: kind
        for name, (kind, _) in columns(schema).items()
        if details is None or name in details or name not in schema.details
    }
    parts: dict[str, list[Any]] = {name: [] for name in kinds}
    whose: dict[str, set[Any]] = {name: set() for name in WHOSE}
    for block in chain([[]], run.blocks()):  # a run with no rows has columns too
        kept = block if wanted is None else [row for row in block if row.sample in wanted]
        values = zip(*map(astuple, kept), strict=True) if kept else repeat(())
        of = dict(zip(schema.__struct_fields__, values, strict=False))
        for name, found in whose.items():
            found.update(of[name])
        for name, kind in kinds.items():
            try:
                parts[name].append(column(of[name], kind, shared))
            except OverflowError as error:
                raise UserError(f"run {run.folder}: a {name} is beyond 64 bits; run again with --fresh") from error
    table = pd.DataFrame({name: joined(part) for name, part in parts.items()})
    once = last_of_each(table, ["sample"])
    if wanted is None:  # else a sample that was tried again may not be among them, and counts as two
        run.belong(len(once), whose)
    if text is not None:
        own = [name for name in ("haystack", "text") if name in once]
        once = once.assign(**{name: pd.array([text] * len(once), dtype="str") for name in own})
    return once.assign(run_id=run.run_id, probe=run.probe)


def last_of_each(table: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Return the last row of each sample, but one with a score before any without: what failed was tried again."""
    if not table.duplicated(key).any():
        return table
    return table.sort_values("error", key=pd.isna, kind="stable").drop_duplicates(key, keep="last").sort_index()


def column(values: Sequence[Any], kind: Any, shared: dict[str, str]) -> Any:
    """Return values as a part of a column of their type: what is missing is NaN, NA or None."""
    kinds = (kind,) if get_origin(kind) is list else get_args(kind) or (kind,)
    plain = {getattr(each, "__origin__", each) for each in kinds} - {NoneType}
    if kind is bool:
        return np.array(values, dtype=bool)
    if plain == {bool}:
        return pd.array(values, dtype="boolean")
    if plain == {int}:
        return np.array(values, dtype=int if kind is int else float)
    if plain == {float}:
        return np.array(values, dtype=float)
    if plain == {str}:
        return pd.array([None if value is None else shared.setdefault(value, value) for value in values], dtype="str")
    return np.fromiter(values, dtype=object, count=len(values))


def joined(parts: list[Any]) -> Any:
    """Return the parts of a column in one."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return pd.concat([pd.Series(part) for part in parts], ignore_index=True).array
