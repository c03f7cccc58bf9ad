"""Find stored runs below a path, ours and lm-eval's of our tasks, packed ones too, and load their rows."""

from pathlib import Path

import pandas as pd

from .disk import HALF
from .errors import UserError
from .harness.samples import find_samples
from .packs import SUFFIX, packed_runs
from .store import Run


def find_runs(*paths: str | Path) -> list[Run]:
    """Return the runs at or below each path, by folder name, those in packs, and lm-eval's samples of our tasks as runs.

    Raises UserError for none.
    """
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"run {str(path)!r}: no such path; give a run's folder, a folder of runs or a pack")
        folder = path.parent if path.name in ("rows.jsonl", "run.json") else path
        files = [rows for rows in sorted(folder.rglob("rows.jsonl")) if not rows.parent.name.startswith(HALF)]
        found = [Run(rows.parent) for rows in files] + find_samples(path)
        packs = [path] if path.is_file() and path.suffix == SUFFIX else sorted(folder.rglob(f"*{SUFFIX}"))
        found += [run for pack in packs for run in packed_runs(pack)]
        if not found:
            raise UserError(f"run {str(path)!r}: no rows.jsonl in or below it; give a run's folder or a folder of runs")
        runs |= {run.folder.resolve(): run for run in found}
    return list(runs.values())


def load_results(*paths: str | Path | Run) -> pd.DataFrame:
    """Return the rows of all runs at or below the paths as one DataFrame, with a run_id column.

    A sample that could not be scored has correct = <NA> (nullable boolean), never False; its reason is in `error`.
    """
    runs = [run for path in paths for run in ([path] if isinstance(path, Run) else find_runs(path))]
    rows = [{"run_id": run.run_id, **row} for run in runs for row in run.rows()]
    frame = pd.DataFrame(rows)
    for column in {"correct", "first_correct"} & set(frame.columns):
        frame[column] = frame[column].astype("boolean")
    return frame
