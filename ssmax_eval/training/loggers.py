"""Where a training logs to besides its own file: transformers' integrations (TensorBoard, Weights & Biases and others), if asked."""

from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer
from transformers.integrations import integration_utils

from ..errors import UserError, nearest

TENSORBOARD = "tensorboard"  # the folder of its files, inside the model's


def check_loggers(names: Sequence[str]) -> list[str]:
    """Return the integrations asked for, each once. Raises UserError for one that transformers has not, or whose package is missing."""
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            raise UserError(f"log to {name!r}: allowed are {', '.join(known)}{nearest(name, known)}")
        try:
            known[name]()
        except (ImportError, RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split()) or "its package is missing"
            raise UserError(f"log to {name!r}: it cannot be used here ({reason})") from error
    return [*dict.fromkeys(names)]


def keep_logs(trainer: Trainer, folder: Path) -> None:
    """Let TensorBoard write beside the model: the Trainer's own folder is gone when training ends. TENSORBOARD_LOGGING_DIR goes before."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, integration_utils.TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder / TENSORBOARD)
