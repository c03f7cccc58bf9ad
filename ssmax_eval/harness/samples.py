"""What lm-eval wrote of our tasks (`--log_samples`), read as runs with a native run's rows. Needs neither lm-eval nor torch."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import asdict

from ..disk import json_in, json_of
from ..errors import UserError
from ..probes.attention.rows import AttentionRow
from ..probes.needle.rows import NeedleRow
from ..record import Record, shared_columns
from ..rows import Fields, Row, checked, columns, line_of
from ..store import FORMAT, Run

TEXTS = ("context", "answer")  # of a document; a row names its prompt by its hash
# of lm-eval's config, what says which weights it loaded, and how
LOADED = ("model", "model_args", "model_revision", "model_sha", "delta_sha", "peft_sha")
UNTOLD = dict.fromkeys(
    ("predicted", "predicted_tokens", "expected_tokens", "first_correct", "answer_ranks", "margin")
)  # by a log-likelihood


class Samples(Run):
    """One `samples_<task>_<time>.jsonl` of a needle task of ours, with the `results_<time>.json` beside it; `folder` is the file."""

    is_complete = True  # lm-eval writes when all is done

    @property
    def probe(self) -> str:
        return "attention" if self.schema is AttentionRow else "needle"

    @property
    def run_id(self) -> str:
        return hashlib.sha256(self.folder.read_bytes()).hexdigest()[:12]

    @cached_property
    def results(self) -> dict[str, Any]:
        """lm-eval's results of the same run. Raises UserError where they are not beside the samples."""
        beside = self.folder.with_name(f"results_{self.folder.stem.rpartition('_')[2]}.json")
        try:
            found: dict[str, Any] = json_in(beside)
            if not all(isinstance(found[part], dict) for part in ("config", "configs")):
                raise ValueError("not lm-eval's")
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"samples {self.folder}: {beside.name}, which says of what model they are, cannot be read ({error})"
            ) from error

    @property
    def task(self) -> str:
        return self.folder.stem.removeprefix("samples_").rpartition("_")[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """What decided the prompts, as the task recorded it."""
        found: dict[str, Any] = self.results["configs"].get(self.task, {}).get("metadata", {}).get("parameters", {})
        return found

    @cached_property
    def setting(self) -> dict[str, Any]:
        """Model, attention, RoPE and environment as a run.json tells them. Raises UserError for results that do not tell them."""
        try:
            found = self.setting_told()
            told = {"parameters": self.parameters, **found, "rows": 0, "tokens": 0, "seconds": 0.0}
            float(self.results.get("total_evaluation_time_seconds") or 0)
            msgspec.convert(told, Record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"samples {self.folder}: the results beside them are not lm-eval's ({type(error).__name__}: {error}); run lm-eval again"
            ) from error
        return found

    def setting_told(self) -> dict[str, Any]:
        """Return it as the results have it: of lm-eval's own model types only what it records."""
        config = self.results["config"]
        if "ssmax_eval" in config:
            return dict(config["ssmax_eval"])
        arguments = config.get("model_args") or {}
        named = arguments.get("pretrained", arguments.get("model", "?")) if isinstance(arguments, dict) else arguments
        model = {
            "label": self.parameters.get("model", os.path.basename(str(named).rstrip("/"))),
            "architecture": f"lm-eval's {config['model']}",
            "parameters": config.get("model_num_parameters") or 0,
            # lm-eval does not record the weights: two models of one name are told apart by what it was asked to load
            "fingerprint": hashlib.sha256(
                json.dumps([config.get(name) for name in LOADED], sort_keys=True).encode()
            ).hexdigest()[:16],
            "dtype": str(config.get("model_dtype", "not recorded")).removeprefix("torch."),
        }
        # they run a checkpoint as it is, so its mechanism is the one in its config
        attention = {
            "attention": self.parameters.get("model_attention", "not recorded"),
            "swapped": False,
            "unscaled_layers": [],
        }
        return {
            "model": model,
            "attention": attention,
            "rope": {"effective": None},
            "environment": {"device": config["device"]},
        }

    def content(self, name: str) -> bytes | None:
        """Return what a native run's file would hold: what a pack keeps, in which no prompt stands as text."""
        if name == self.rows_path.name:
            return b"".join(map(line_of, self.rows()))
        told = {"format": FORMAT, "run_id": self.run_id, **self.record()}
        return json.dumps(told, indent=1, allow_nan=False).encode() if name == self.record_path.name else None

    def record(self) -> dict[str, Any]:
        """Return what a native run.json tells, as far as lm-eval's results do."""
        rows, seconds = self.rows(), self.results.get("total_evaluation_time_seconds")
        return {
            "probe": self.probe,
            "parameters": self.parameters,
            **self.setting,
            "reader": {"reader": f"lm-eval {self.results.get('lm_eval_version', '')}".rstrip(), "task": self.task},
            "seconds": round(float(seconds or 0), 2),
            "rows": len(rows),
            "failed": 0,
            "tokens": sum(row["context_length"] for row in rows),
        }

    def typed_rows(self) -> list[Row]:
        """Return a row for each prompt, as the needle or attention probe would have written it. Raises UserError for a broken file."""
        common = shared_columns({"parameters": {}, **self.setting})
        rows = []
        for number, line in enumerate(self.folder.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
            try:
                found = common | row_of(json_of(line))
                rows.append(checked({name: found[name] for name in columns(self.schema) if name in found}, self.schema))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                raise UserError(
                    f"samples {self.folder}: line {number} is not a sample of ours ({error}); run lm-eval again"
                ) from error
        return rows

    @property
    def size(self) -> int:
        return self.folder.stat().st_size

    def blocks(self) -> Iterator[list[Row]]:
        yield self.typed_rows()

    def rows(self) -> list[Fields]:
        return [asdict(row) for row in self.typed_rows()]


def row_of(sample: dict[str, Any]) -> Fields:
    """Return a logged sample as the row that the needle probe would have written."""
    doc = {name: value for name, value in sample["doc"].items() if name not in TEXTS}
    if sample["acc"] not in (0, 1):
        raise ValueError("no verdict")
    right = bool(sample["acc"])
    row = {**doc, **UNTOLD, "correct": right, "answer_nll": float(sample["nll"]), "error": None}
    # which of several values are right, a verdict over all of them does not tell
    row["credit"] = (
        float(right) if right or doc.get("needles") == 1 or doc.get("task") in ("multikey", "choice") else None
    )
    # masses come as one JSON text, with all that the native probe says of the answer
    return row | (json_of(sample["resps"][0][0]) if "mass_answer" in sample else {})


def find_samples(path: Path) -> list[Samples]:
    """Return the sample files of our needle tasks at or below a path; those of other tasks are none of ours."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("samples_*.jsonl") if file.is_file())
    return [Samples(file, schema) for file in files if (schema := schema_in(file)) is not None]


def schema_in(file: Path) -> type[Row] | None:
    """Return the schema of the rows that a sample file's lines become; None for one that is none of ours."""
    try:
        with file.open("rb") as stream:
            sample = json_of(stream.readline())
        if not {"prompt_sha256", "depth_percent"} <= sample["doc"].keys():
            return None
        return AttentionRow if "mass_answer" in sample else NeedleRow
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
