"""The run store: a folder a run, rows appended as they come, run.json last."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import held, whole
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
    """A run's folder, `<output path>/<probe>/<run_id>`, holding rows.jsonl and, once complete, run.json."""

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

    def content(self, name: str) -> bytes | None:
        """Return what a file of the run holds, rows.jsonl or run.json; None where there is none."""
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
        """Return the rows, the last one of each sample; a last line without an end, left by a killed process, does not count."""
        rows: dict[str, Row] = {}
        for number, line in enumerate((self.content(self.rows_path.name) or b"").split(b"\n")[:-1], 1):
            try:
                row = dict(json.loads(line))
                wrong = [name for name, kind in ROW.items() if not isinstance(row.get(name), kind)]
                wrong += [name for name in PROMPT if "prompt_sha256" in row and name not in row]
                if wrong:
                    raise ValueError(wrong[0])
                rows[row["sample"]] = row
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"run {self.folder}: line {number} of rows.jsonl is broken; run again with --fresh"
                ) from error
        return list(rows.values())

    def writer(self, fresh: bool = False) -> "RowWriter":
        return RowWriter(self, fresh)

    def finish(self, record: dict[str, Any]) -> None:
        """Write run.json at once and whole."""
        text = json.dumps({"format": FORMAT, "run_id": self.run_id, **record}, indent=1, allow_nan=False)
        with whole(self.record_path) as half:
            half.write_text(text + "\n")


def line_of(row: Row) -> bytes:
    """Return a row as its line of rows.jsonl."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()


class RowWriter:
    """Append rows to a run, one process at a time; a half-written last line is cut off first, with `fresh` all lines are.

    At the end each sample has one line.
    """

    def __init__(self, run: Run, fresh: bool = False) -> None:
        self.run = run
        self.fresh = fresh

    def __enter__(self) -> "RowWriter":
        busy = f"run {self.run.folder}: another process is writing it; wait for it to end"
        with ExitStack() as stack:
            stack.enter_context(held(self.run.folder, busy))
            self._open(stack)
            self.stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack) -> None:
        """Open the rows of a run that is held, cut to whole lines, or to none."""
        try:
            self.stream = stack.enter_context(self.run.rows_path.open("ab+"))
        except OSError as error:
            raise UserError(
                f"output path {str(self.run.folder)!r}: cannot be written ({error.strerror}); give another"
            ) from error
        if self.fresh:
            self.run.record_path.unlink(missing_ok=True)
            self.stream.truncate(0)
        self.stream.seek(0)
        self.stream.truncate(self.stream.read().rfind(b"\n") + 1)
        self.stream.seek(0, os.SEEK_END)

    def _once(self) -> None:
        """Leave one line of each sample, its last: what had no score and was tried again stands there twice till now."""
        rows = self.run.rows()
        if len(rows) < self.run.rows_path.read_bytes().count(b"\n"):
            with whole(self.run.rows_path) as half:
                half.write_bytes(b"".join(map(line_of, rows)))

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows and flush them to the system, a batch in one write."""
        self.stream.write(b"".join(map(line_of, rows)))
        self.stream.flush()

    def __exit__(self, *error: object) -> None:
        try:
            self.stream.close()
            self._once()
        finally:
            self.stack.close()
