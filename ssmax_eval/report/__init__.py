"""One self-contained HTML page of runs. Reads scores, never computes correctness; imports no torch."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from .. import statistics
from ..errors import UserError
from ..probes import PROBES, families, rows_of
from ..results import details_of, find_runs, seldom_collected, tables, with_details
from ..rows import columns
from ..store import Run
from .chosen import SECTION as CHOSEN
from .context import Context
from .files import save_tables
from .page import html, write
from .section import Found, found_by
from .training import SECTION as TRAINING

log = logging.getLogger(__name__)
AT_ONCE = 2**28  # bytes of rows that are read whole; of more the details are read again, of the rows that are shown


def report(
    data: pd.DataFrame | Sequence[str | Path | Run] | str | Path,
    out: str | Path,
    title: str = "",
    figures_folder: str | Path | None = None,
    baseline: str | None = None,
    attended: float | None = None,
    blow_up: float | None = None,
    tables_folder: str | Path | None = None,
) -> Path:
    """Write one HTML file of probes' rows and return its path; with figures_folder, the figures too, as SVG, PNG and PDF.

    tables_folder: where every table is written too, as CSV and LaTeX.

    data: a DataFrame of load_results, or runs, or paths of runs. title: the heading, by default what the page holds.
    baseline: the series that the others are compared with, by default statistics.default_baseline. attended, blow_up: where the causes of
    failure part (statistics.Thresholds), by default as the runs' records say. Raises UserError for data without rows, and
    for a baseline that is not there.
    """
    runs: list[Run] = []
    if not isinstance(data, pd.DataFrame):
        items = [data] if isinstance(data, str | Path) else data
        named = [
            run for item in items for run in ([item] if isinstance(item, Run) else sorted(find_runs(item), key=naming))
        ]
        runs = list({run.folder.resolve(): run for run in named}.values())
    folder = None if figures_folder is None else Path(figures_folder)
    context = context_of(runs, folder, baseline, attended, blow_up)
    findings = found_in(data if isinstance(data, pd.DataFrame) else runs, context)
    if not findings.found:
        raise UserError("report: no rows of a probe in the runs given; run `ssmax-eval needle` or another probe first")
    known_baseline(baseline, findings.names)
    page = written(out, title, findings, context)
    if tables_folder is not None:
        save_tables(findings.found, Path(tables_folder))
    return page


@dataclass(frozen=True)
class Findings:
    """What the sections have to show, the names of the series they show it of, and how many rows have no score, by reason."""

    found: list[Found]
    names: list[str]
    failed: dict[str, int]


def context_of(
    runs: Sequence[Run],
    folder: Path | None = None,
    baseline: str | None = None,
    attended: float | None = None,
    blow_up: float | None = None,
) -> Context:
    """Return what the sections are given of runs and of the page's settings."""
    records = [{**run.record(), "run_id": run.run_id} for run in runs]
    return Context(records, folder, baseline, thresholds(records, attended, blow_up))


@seldom_collected()
def written(out: str | Path, title: str, findings: Findings, context: Context) -> Path:
    """Write the page of what was found, and its figures where they are wanted, and return its path."""
    page = write(Path(out), html(title, findings.found, findings.names, context))
    context.save()
    return page


def read(runs: Sequence[Run], context: Context) -> tuple[pd.DataFrame, Context]:
    """Return the rows of runs with the columns that sections take, and a context that knows where the others are."""
    taken = {name for kind in PROBES.values() for section in kind.sections() for name in section.details}
    if sum(run.size for run in runs) > AT_ONCE:
        return tables(runs, taken), replace(context, details=partial(details_of, runs))
    whole, schemas = tables(runs), {run.schema for run in runs}
    # what is a detail to one probe can be a number to another
    taken |= {name for schema in schemas for name in set(columns(schema)) - schema.details}
    left = {name for schema in schemas for name in schema.details} - taken
    return whole[[name for name in whole if name not in left]], replace(context, details=partial(with_details, whole))


@seldom_collected()
def found_in(data: pd.DataFrame | Sequence[Run], context: Context) -> Findings:
    """Return what every section has to show of rows, in the order of the page. Of runs no more is read than that takes."""
    rows, context = (data, context) if isinstance(data, pd.DataFrame) else read(data, context)
    reasons = rows["error"].value_counts() if "error" in rows else {}
    found: list[Found] = []
    names: list[str] = []
    models: dict[str, None] = {}
    parts = [(kinds, rows_of(kinds, rows)) for kinds in families()] if "attention_swapped" in rows else []
    if left := len(rows) - sum(len(part) for _, part in parts):
        of = sorted(set(rows["probe"].dropna()) - {*PROBES}) if "probe" in rows else []
        log.warning(
            "ssmax-eval: note: %d rows are of no probe that is known here (%s), and not shown", left, ", ".join(of)
        )
    del rows, data  # what is read is held once
    while parts:
        # apart from rows of other kinds, so that a mechanism names only the tables in which one is
        kinds, part = parts.pop(0)
        part = context.with_reach(series_of(part, context))
        if part.empty:
            continue
        names += part["series"].unique().tolist()
        models |= dict.fromkeys(part["model"].unique().tolist())
        for section in [section for kind in kinds for section in kind.sections()]:
            if (each := found_by(section, part, context)) is not None:
                found.append(each)
    # of a page, not of a probe: each model's own, once
    for section in (CHOSEN, TRAINING) if models else ():
        if (each := found_by(section, pd.DataFrame({"model": [*models]}), context)) is not None:
            found.append(each)
    in_order = sorted(found, key=lambda each: each.section.place)
    return Findings(in_order, names, {str(reason): int(count) for reason, count in dict(reasons).items()})


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
