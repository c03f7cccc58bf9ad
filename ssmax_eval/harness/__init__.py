"""lm-eval: our probes as its tasks, our models as its model type, its command line with both registered.

requests.py: what our tasks ask of a model, and the guards; documents.py, tasks.py: prompts as lm-eval's documents, and its tasks;
model.py: the model type; samples.py: what lm-eval wrote, as rows. Only samples.py works without lm-eval.
"""

from pathlib import Path

from ..errors import UserError


def tasks_path() -> Path:
    """Return the folder of our lm-eval task files, for --include_path. Raises UserError for an installation without it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "tasks", package.parent / "tasks"):  # in a wheel, in a checkout
        if (folder / "ssmax_needle.yaml").is_file():
            return folder
    raise UserError(f"lm-eval tasks: none at {package.name}/tasks; this installation is incomplete, install again")
