"""One self-contained HTML page of runs. Reads scores, never computes correctness; imports no torch."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from .. import statistics
from ..errors import UserError
from ..results import find_runs, load_results
from ..store import Run
from . import causes, grids, losses, masses, prompts, theta, training
from .context import Context
from .page import html, write


def report(
    data: pd.DataFrame | Sequence[str | Path | Run] | str | Path,
    out: str | Path,
    title: str = "",
    figures_folder: str | Path | None = None,
    baseline: str | None = None,
    attended: float | None = None,
    blow_up: float | None = None,
) -> Path:
    """Write one HTML file of probes' rows and return its path; with figures_folder, the figures too, as SVG, PNG and PDF.

    data: a DataFrame of load_results, or runs, or paths of runs. title: the heading, by default what the page holds.
    baseline: the series that the others are compared with, by default statistics.default_baseline. attended, blow_up: where the causes of
    failure part (statistics.Thresholds), by default as the runs' records say. Raises UserError for data without rows, and
    for a baseline that is not there.
    """
    records: list[dict[str, Any]] = []
    if not isinstance(data, pd.DataFrame):
        items = [data] if isinstance(data, str | Path) else data
        found = [
            run for item in items for run in ([item] if isinstance(item, Run) else sorted(find_runs(item), key=naming))
        ]
        runs = list({run.folder.resolve(): run for run in found}.values())
        records = [{**run.record(), "run_id": run.run_id} for run in runs]
        data = load_results(*runs)
    of_prompts, of_documents = statistics.of_prompts(data), statistics.of_documents(data)
    if (of_prompts.empty and of_documents.empty) or "attention_swapped" not in data:
        raise UserError("report: no rows of a probe in the runs given; run `ssmax-eval needle` or another probe first")
    folder = None if figures_folder is None else Path(figures_folder)
    context = Context(records, folder, baseline, thresholds(records, attended, blow_up))
    read = [of_documents, of_prompts]
    del data, of_prompts, of_documents  # what is read is held once
    of_prompts, of_documents = series_of(read.pop(), context), series_of(read.pop(), context)
    names = [name for part in (of_prompts, of_documents) if len(part) for name in part["series"].unique()]
    known_baseline(baseline, names)
    parts: dict[str, list[Any]] = {
        name: [] for name in ("sections", "causes", "thetas", "seeds", "attentions", "losses")
    }
    packed, curves = [], None
    if not of_prompts.empty:
        curves = training.curves(of_prompts, context)
        for number, (_, part) in enumerate(statistics.tasks(of_prompts), 1):
            heading = statistics.task_name(part)
            given = (number, heading, part, context)
            parts["sections"].append(grids.section(*given))
            parts["causes"].append(causes.section(*given))
            parts["thetas"].append(theta.section(*given))
            parts["seeds"].append(training.seeds_section(*given))
            parts["attentions"].append(masses.section(*given))
            packed.append(prompts.payload(heading, part, context.thresholds))
    if not of_documents.empty:
        for number, (_, part) in enumerate(statistics.tasks(of_documents, statistics.TEXT), 1):
            parts["losses"].append(losses.section(number, part, context))
    written = write(
        Path(out), html(title, {k: [*filter(None, v)] for k, v in parts.items()}, packed, curves, names, context)
    )
    context.save()
    return written


def thresholds(records: list[dict[str, Any]], attended: float | None, blow_up: float | None) -> statistics.Thresholds:
    """Return the thresholds given, and for those that are not, what the first run record with any tells."""
    given = {name: value for name, value in (("attended", attended), ("blow_up", blow_up)) if value is not None}
    record = next((record for record in records if record.get("thresholds")), {})
    found = record.get("thresholds", {})
    try:
        return statistics.Thresholds(**{**found, **given})
    except TypeError as error:
        raise UserError(
            f"run {record['run_id']}: thresholds {found!r} in its record are not attended and blow_up; mend run.json"
        ) from error


def naming(run: Run) -> tuple[str, ...]:
    """Return what sorts runs of a folder by the names they have on the page: model, mechanism, RoPE."""
    record = run.record()
    parts = [record.get(part) or {} for part in ("model", "attention", "rope")]
    return str(parts[0].get("label", "")), str(parts[1].get("attention")), str(parts[2].get("requested")), run.run_id


def series_of(rows: pd.DataFrame, context: Context) -> pd.DataFrame:
    """Return rows with their series, those of the baseline in front: what is compared with it stands beside it on the page."""
    if rows.empty:
        return rows
    rows = statistics.with_series(rows)
    behind = (rows["series"] != context.baseline_of(rows)).to_numpy()
    if (behind[:-1] <= behind[1:]).all():
        return rows
    order = np.argsort(behind, kind="stable")
    index = rows.index[order]
    # a column at a time, or all would be there twice
    moved = {name: pd.Series(rows.pop(name).array.take(order), index=index) for name in list(rows)}
    return pd.DataFrame(moved, copy=False)


def known_baseline(baseline: str | None, names: list[str]) -> None:
    if baseline is not None and baseline not in names:
        raise UserError(f"baseline {baseline!r}: no such series; allowed are {'; '.join(names)}")


class _CallableModule(ModuleType):
    """Lets `ssmax_eval.report(runs, "x.html")` and `ssmax_eval.report.figures` both be what they look like."""

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
