"""Turn a softmax checkpoint into one with another mechanism, without training."""

import json
from pathlib import Path

from ..disk import whole
from ..errors import UserError
from ..mechanisms.spelling import Attention
from .checkpoint import save_model
from .load import load_model
from .sources import TRAINING, resolve


def retrofit(reference: str, attention: str, folder: str | Path, dtype: str = "auto") -> Path:
    """Save a model under a mechanism, its learned values at their start: s = 1 / mean(ln n), or `ssmax:s=0.2`.

    reference: a model as load_model takes it; what it learned of that very mechanism it keeps. Returns the folder, which is
    there whole or not at all and opens like any checkpoint of ours. Raises UserError.
    """
    folder = Path(folder)
    refuse_occupied(folder)
    source = resolve(reference)
    asked = str(Attention.of(attention))
    own = source.config().get("ssmax") if not source.is_gguf else None
    keeps = isinstance(own, dict) and own.get("attention") == asked
    model, tokenizer = load_model(source, attention=None if keeps else asked, dtype=dtype, device="cpu")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as made:
            save_model(model, tokenizer, made)
            if record := source.training():
                # how the weights came about stays true; what the mechanism learned does not
                record |= {} if keeps else {"retrofitted": attention, "learned": {}}
                (made / TRAINING).write_text(json.dumps(record, indent=2))
    except OSError as error:
        refuse_occupied(folder)  # another process was faster
        raise UserError(f"output {str(folder)!r}: cannot be written ({error.strerror}); give another") from error
    return folder


def refuse_occupied(folder: Path) -> None:
    """Raise UserError for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output {str(folder)!r}: it is there already and not empty; give another folder")
