"""The run store: a folder a run, rows appended as they come, run.json last."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import HALF, LOCK, held, whole
from .errors import UserError

Row = dict[str, Any]
FORMAT = 1
# what a record has to tell, and of what type; None: it may be missing
TOLD = {
    "parameters": dict, "model": dict, "attention": dict, "rope": dict, "environment": dict, "rows": int, "tokens": int,
    "seconds": int | float, "thresholds": dict | None, "command": str | None, "model.label": str,
    "model.architecture": str, "model.parameters": int, "model.fingerprint": str, "model.dtype": str,
    "model.train_length": int | None, "model.training": dict | None, "model.training.log": list | None,
    "attention.attention": str, "attention.unscaled_layers": list | None, "attention.scaled_layers": list | None,
    "attention.learned": dict | None, "rope.effective": dict | None, "environment.device": str,
}  # fmt: skip
NUMBER = int | float | None
ROW = {
    "sample": str, "model": str | None, "attention": str | None, "rope": str | None, "context_length": int,
    "error": str | None,
    "correct": bool | None, "first_correct": bool | None, "nll_sum": NUMBER, "depth_percent": NUMBER, "answer_nll": NUMBER,
    "haystack_nll": NUMBER, "top_mass_answer": list | None, "mass_answer": list | None, "answer_ranks": list | None,
}  # fmt: skip
PROMPT = "model attention rope task value needles haystack trial control realised_depth_percent needle question expected".split()


def run_id_of(key: dict[str, Any]) -> str:
    """Return 12 hex digits of the sha256 over a run's canonical key: what was asked, of which weights."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Run:
    """A run's folder, `<output path>/<probe>/<run_id>`, holding rows.jsonl and, once complete, run.json.

    While several processes write it, each has its rows.<rank>.jsonl beside them.
    """

    folder: Path

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def rows_path(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def record_path(self) -> Path:
        return self.folder / "run.json"

    def parts(self) -> list[Path]:
        """Return the files of rows that processes have of their own till the run is complete."""
        return sorted(self.folder.glob("rows.*.jsonl"))

    def content(self, name: str) -> bytes | None:
        """Return what a file of the run holds; None where there is none."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    @property
    def is_complete(self) -> bool:
        return self.record_path.is_file()

    @property
    def is_scored(self) -> bool:
        """Tell whether the run is complete, holds the rows it had then, and all have scores: what failed may be tried again."""
        record = self.record()
        return bool(record) and not record.get("failed") and record.get("rows") == len(self.rows())

    def record(self) -> dict[str, Any]:
        """Return run.json; {} for a run that is not complete."""
        if not self.is_complete:
            return {}
        try:
            record: dict[str, Any] = json.loads(self.content(self.record_path.name) or b"")
            for name, kind in TOLD.items():
                value: Any = record
                for part in name.split("."):
                    value = value.get(part) if isinstance(value, dict) else None
                if isinstance(value, bool) or not isinstance(value, kind):
                    raise ValueError(f"{name} is not told as it should be")
            return record
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"run {self.folder}: run.json cannot be read ({error}); run again with --fresh") from error

    def rows(self) -> list[Row]:
        """Return the rows of all its files, the last one of each sample, but one with a score before any without.

        A last line without an end, left by a killed process, does not count.
        """
        rows: dict[str, Row] = {}
        for file in [self.rows_path, *self.parts()]:
            for number, line in enumerate((self.content(file.name) or b"").split(b"\n")[:-1], 1):
                try:
                    row = dict(json.loads(line))
                    wrong = [name for name, kind in ROW.items() if not isinstance(row.get(name), kind)]
                    wrong += [name for name in PROMPT if "prompt_sha256" in row and name not in row]
                    if wrong:
                        raise ValueError(wrong[0])
                    if row.get("error") is None or rows.get(row["sample"], row).get("error") is not None:
                        rows[row["sample"]] = row
                except (ValueError, TypeError, KeyError) as error:
                    raise UserError(
                        f"run {self.folder}: line {number} of {file.name} is broken; run again with --fresh"
                    ) from error
        return list(rows.values())

    def writer(self, fresh: bool = False, process: int | None = None) -> "RowWriter":
        return RowWriter(self, fresh, process)

    def finish(self, record: dict[str, Any]) -> None:
        """Write run.json at once and whole."""
        text = json.dumps({"format": FORMAT, "run_id": self.run_id, **record}, indent=1, allow_nan=False)
        with whole(self.record_path) as half:
            half.write_text(text + "\n")


def line_of(row: Row) -> bytes:
    """Return a row as its line of rows.jsonl."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()


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
        for left in self.run.folder.glob(f"{HALF}*"):
            shutil.rmtree(left, ignore_errors=True)
        self.run.rows_path.touch()
        if self.fresh:
            self.run.record_path.unlink(missing_ok=True)
            for part in self.run.parts():
                part.unlink()
            os.truncate(self.run.rows_path, 0)

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows and flush them to the system, a batch in one write."""
        self.stream.write(b"".join(map(line_of, rows)))
        self.stream.flush()

    def close(self) -> None:
        """Write no more; the run is held on."""
        self.stream.close()

    def gather(self, samples: Sequence[str]) -> list[Row]:
        """Leave rows.jsonl alone, with one line of each sample in the order of a plan, and return them; nobody writes any more.

        Raises UserError if one is missing.
        """
        self.close()
        place = {sample: number for number, sample in enumerate(samples)}
        rows = sorted(self.run.rows(), key=lambda row: place.get(row["sample"], len(place)))
        if missing := len({*place} - {row["sample"] for row in rows}):
            raise UserError(
                f"run {self.run.folder}: {missing} of {len(place)} rows are missing, as the processes cut other batches; "
                "give all the same kind of device, or a --batch-size"
            )
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
