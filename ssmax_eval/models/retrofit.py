"""Turn a softmax checkpoint into one with another attention law, without training."""

import json
from pathlib import Path

from ..errors import UserError
from .checkpoint import save_model
from .load import load_model
from .sources import TRAINING, resolve


def retrofit(reference: str, attention: str, folder: str | Path, dtype: str = "auto") -> Path:
    """Save a model under an attention law, its learned values at their start: s = 1 / mean(ln n), or `ssmax:s=0.2`.

    reference: a model as load_model takes it. Returns the folder, which opens like any checkpoint of ours. Raises UserError.
    """
    folder = Path(folder)
    refuse_occupied(folder)
    source = resolve(reference)
    model, tokenizer = load_model(source, attention=attention, dtype=dtype, device="cpu")
    save_model(model, tokenizer, folder)
    if record := source.training():
        # how the weights came about stays true; what the law learned does not
        record |= {"retrofitted": attention, "learned": {}}
        (folder / TRAINING).write_text(json.dumps(record, indent=2))
    return folder


def refuse_occupied(folder: Path) -> None:
    """Raise UserError for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output {str(folder)!r}: it is there already and not empty; give another folder")
