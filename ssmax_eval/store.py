"""The run store: a folder a run, rows appended as they come, run.json last."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from .disk import LOCK, held, whole
from .errors import UserError
from .record import Record, shared_columns
from .rows import Fields, Row, checked, in_words, line_of, read

FORMAT = 1
R = TypeVar("R")
BLOCK = 10_000  # rows that are read at a time
UNTOLD = {"attention_swapped": False}  # what a row that does not tell a column has there, None aside
# columns by which rows and a record belong together
WHOSE = (
    *("model", "fingerprint", "dtype", "attention", "attention_swapped"),
    *("rope", "rope_theta", "rope_theta_factor", "rope_scaling", "seed"),
)


def run_id_of(key: dict[str, Any]) -> str:
    """Return 12 hex digits of the sha256 over a run's canonical key: what was asked, of which weights."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Run:
    """A run's folder, `<output path>/<probe>/<run_id>`, holding rows.jsonl and, once complete, run.json.

    schema: of its rows; Row for those of a probe that is not known here. While several processes write it, each has its
    rows.<rank>.jsonl beside them.
    """

    folder: Path
    schema: type[Row] = Row

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def probe(self) -> str:
        """The name of the probe whose run it is: as its record says, as a finished run may be moved; else its folder's."""
        return str(self.record().get("probe") or self.folder.resolve().parent.name)

    @property
    def rows_path(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def record_path(self) -> Path:
        return self.folder / "run.json"

    def parts(self) -> list[Path]:
        """Return the files of rows that processes have of their own till the run is complete."""
        return sorted(path for path in self.folder.glob("rows.*.jsonl") if path.name.split(".")[1].isdecimal())

    def content(self, name: str) -> bytes | None:
        """Return what a file of the run holds; None where there is none."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    @property
    def is_complete(self) -> bool:
        return self.record_path.is_file()

    def is_scored(self, samples: Iterable[str]) -> bool:
        """Tell whether the run is complete, holds the rows of a plan's samples, and all have scores: what failed may be tried again.

        Raises UserError for rows that its record is not of.
        """
        record = self.record()
        if not record or record.get("failed"):
            return False
        rows = self.rows()
        self.refuse_others(rows, shared_columns(record))
        return record["rows"] == len(rows) and {row["sample"] for row in rows} == {*samples}

    def record(self) -> dict[str, Any]:
        """Return run.json; {} for a run that is not complete."""
        if not self.is_complete:
            return {}
        try:
            record: dict[str, Any] = msgspec.json.decode(self.content(self.record_path.name) or b"")
            msgspec.convert(record, Record)
        except UserError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"run {self.folder}: run.json cannot be read ({in_words(error)}); run again with --fresh"
            ) from error
        return record

    def blocks(self) -> Iterator[list[Row]]:
        """Yield the rows as their schema has them, some at a time, also those of a sample that was tried again."""
        each = self._each(lambda line: read(line, self.schema))
        while block := list(islice(each, BLOCK)):
            yield block

    def rows(self) -> list[Fields]:
        """Return the rows of all its files as JSON has them: of each sample the last one, but one with a score before any without.

        A last line without an end, left by a killed process, does not count. Raises UserError for a line that is not a row as
        its schema says.
        """

        def as_json(line: bytes) -> Fields:
            row: Fields = msgspec.json.decode(line)
            checked(row, self.schema)
            return row

        rows: dict[str, Fields] = {}
        for row in self._each(as_json):
            if row["error"] is None or rows.get(row["sample"], row)["error"] is not None:
                rows[row["sample"]] = row
        return list(rows.values())

    def _each(self, decode: Callable[[bytes], R]) -> Iterator[R]:
        """Yield each line of the rows, decoded."""
        for name in [self.rows_path.name, *(part.name for part in self.parts())]:
            with self.opened(name) as stream:
                for number, line in enumerate(stream, 1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        row = decode(line)
                    except (ValueError, RecursionError) as error:
                        raise UserError(
                            f"run {self.folder}: line {number} of {name} is broken ({in_words(error)}); run again with --fresh"
                        ) from error
                    yield row

    @property
    def size(self) -> int:
        """The bytes of its rows."""
        return sum(path.stat().st_size for path in [self.rows_path, *self.parts()] if path.is_file())

    def opened(self, name: str) -> IO[bytes]:
        """Open a file of the run to be read; nothing where there is none."""
        path = self.folder / name
        return path.open("rb") if path.is_file() else io.BytesIO()

    def verify(self) -> None:
        """Raise UserError for rows that are not as their schema says, or that the run's record is not of."""
        rows = self.rows()
        self.belong(len(rows), values_of(rows))

    def belong(self, count: int, values: Mapping[str, Iterable[Any]]) -> None:
        """Raise UserError for rows that the run's record is not of. count: of rows. values: those of WHOSE, by column."""
        record = self.record()
        if not record:
            return
        if count != record["rows"]:
            raise UserError(
                f"run {self.folder}: run.json tells of {record['rows']} rows, rows.jsonl holds {count}; "
                "the same command again mends it"
            )
        self._refuse(values, shared_columns(record))

    def refuse_others(self, rows: Iterable[Fields], told: Mapping[str, Any]) -> None:
        """Raise UserError for stored rows that are not of this run. told: what its record tells of them all, by column."""
        self._refuse(values_of(rows), told)

    def _refuse(self, values: Mapping[str, Iterable[Any]], told: Mapping[str, Any]) -> None:
        for name, value in told.items():
            if name == "seed" and value is None:  # the probe has none of its own
                continue
            # compared, not hashed: a record's value may be of any kind
            if others := {each for each in values[name] if each != value and not (name == "seed" and each is None)}:
                raise UserError(
                    f"run {self.folder}: it is of {name} {value!r}, a row of {min(others, key=str)!r}; they are not of one run: "
                    "run again with --fresh"
                )

    def writer(self, fresh: bool = False, process: int | None = None) -> "RowWriter":
        return RowWriter(self, fresh, process)

    def finish(self, record: dict[str, Any]) -> None:
        """Write run.json at once and whole."""
        text = json.dumps({"format": FORMAT, "run_id": self.run_id, **record}, indent=1, allow_nan=False)
        try:
            msgspec.json.decode(text)
        except ValueError as error:
            raise UserError(f"run {self.folder}: its record could not be read again ({in_words(error)})") from error
        with whole(self.record_path) as half:
            half.write_text(text + "\n")


def values_of(rows: Iterable[Fields]) -> dict[str, set[Any]]:
    """Return the values that rows have of WHOSE, by column."""
    values: dict[str, set[Any]] = {name: set() for name in WHOSE}
    for row in rows:
        for name, found in values.items():
            found.add(row.get(name, UNTOLD.get(name)))
    return values


class RowWriter:
    """Append rows to a run, which one process alone may write, or those of one launch, each into a file of its own.

    process: the rank of one of several; the first, 0, opens the run before the others; None is a process alone. A half-written
    last line of its file is cut off first. fresh: all rows that are there are taken away.
    """

    def __init__(self, run: Run, fresh: bool = False, process: int | None = None) -> None:
        self.run = run
        self.fresh = fresh
        self.leads = not process
        self.path = run.rows_path if process is None else run.folder / f"rows.{process}.jsonl"
        self.lock = LOCK if self.leads else f"{LOCK}.{process}"

    def __enter__(self) -> "RowWriter":
        busy = f"run {self.run.folder}: another process is writing it; wait for it to end"
        with ExitStack() as stack:
            stack.enter_context(held(self.run.folder, busy, self.lock))
            try:
                if self.leads:
                    self._begin(busy)
                self.stream = stack.enter_context(self.path.open("ab+"))
            except OSError as error:
                raise UserError(
                    f"output path {str(self.run.folder)!r}: cannot be written ({error.strerror}); give another"
                ) from error
            self.stream.seek(0)
            self.stream.truncate(self.stream.read().rfind(b"\n") + 1)
            self.stream.seek(0, os.SEEK_END)
            self.stack = stack.pop_all()
        return self

    def _begin(self, busy: str) -> None:
        """Make sure that no process of another launch still writes, and that there is a rows.jsonl, by which a run is found."""
        for lock in self.run.folder.glob(f"{LOCK}.*"):
            with held(self.run.folder, busy, lock.name):
                pass
        self.run.rows_path.touch()
        if self.fresh:
            self.run.record_path.unlink(missing_ok=True)
            for part in self.run.parts():
                part.unlink()
            os.truncate(self.run.rows_path, 0)

    def append(self, rows: Iterable[Fields]) -> None:
        """Write rows and flush them to the system, a batch in one write. Raises UserError for one that is not as its schema says."""
        lines = []
        for row in rows:
            try:
                checked(row, self.run.schema)
                lines.append(line_of(row))
                msgspec.json.decode(lines[-1])  # what cannot be read again is not written: half a character
            except ValueError as error:
                raise UserError(
                    f"probe {self.run.probe}: its row {row.get('sample')!r} is not as its rows.py says ({in_words(error)}); "
                    "mend one of them"
                ) from error
        self.stream.write(b"".join(lines))
        self.stream.flush()

    def close(self) -> None:
        """Write no more; the run is held on."""
        self.stream.close()

    def gather(self, samples: Sequence[str]) -> list[Fields]:
        """Leave rows.jsonl alone, with one line of each sample in the order of a plan, and return them; nobody writes any more.

        Raises UserError if one is missing.
        """
        self.close()
        place = {sample: number for number, sample in enumerate(samples)}
        # others are of no sample of the plan: somebody renamed them
        rows = sorted((row for row in self.run.rows() if row["sample"] in place), key=lambda row: place[row["sample"]])
        if missing := len({*place} - {row["sample"] for row in rows}):
            several = "the processes cut other batches; give all the same kind of device, or a --batch-size"
            alone = f"probe {self.run.probe} names rows that it does not yield; mend its names()"
            why = several if self.run.parts() else alone
            raise UserError(f"run {self.run.folder}: {missing} of {len(place)} rows are missing: {why}")
        parts = self.run.parts()
        # what had no score and was tried again stands there twice
        if parts or len(rows) < self.run.rows_path.read_bytes().count(b"\n"):
            with whole(self.run.rows_path) as half:
                half.write_bytes(b"".join(map(line_of, rows)))
        for part in parts:
            part.unlink()
        return rows

    def __exit__(self, *error: object) -> None:
        try:
            self.close()
        finally:
            self.stack.close()
