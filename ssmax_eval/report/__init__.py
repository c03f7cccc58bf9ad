"""One self-contained HTML page of runs. Reads scores, never computes correctness; imports no torch."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pandas as pd

from .. import statistics
from ..errors import UserError
from ..results import Run, find_runs, load_results
from . import grids, losses, masses


def report(
    data: pd.DataFrame | Sequence[str | Path | Run] | str | Path,
    out: str | Path,
    title: str = "",
    figures_folder: str | Path | None = None,
) -> Path:
    """Write one HTML file of probes' rows and return its path; with figures_folder, the figures too, as SVG, PNG and PDF.

    data: a DataFrame of load_results, or runs, or paths of runs. title: the heading, by default what the page holds.
    Raises UserError for data without rows.
    """
    records: list[dict[str, Any]] = []
    if not isinstance(data, pd.DataFrame):
        items = [data] if isinstance(data, str | Path) else data
        found = [run for item in items for run in ([item] if isinstance(item, Run) else find_runs(item))]
        runs = list({run.folder.resolve(): run for run in found}.values())
        records = [{"run_id": run.run_id, **run.record()} for run in runs]
        data = load_results(*runs)
    prompts, documents = statistics.of_prompts(data), statistics.of_documents(data)
    if (prompts.empty and documents.empty) or "attention_swapped" not in data:
        raise UserError("report: no rows of a probe in the runs given; run `ssmax-eval needle` or another probe first")
    sections, attentions, texts = [], [], []
    if not prompts.empty:
        rows = statistics.with_series(prompts)
        train_lengths = trained(rows, records)
        for number, (_, part) in enumerate(rows.groupby(statistics.TASK, sort=False), 1):
            heading = statistics.task_name(part)
            sections.append(grids.section(number, heading, part, train_lengths, figures_folder))
            if "mass_answer" in part:
                attentions.append(masses.section(number, heading, part, records, train_lengths, figures_folder))
    if not documents.empty:
        rows = statistics.with_series(documents)
        texts = [
            losses.section(number, part, trained(rows, records), figures_folder)
            for number, (_, part) in enumerate(rows.groupby(statistics.TEXT, sort=False), 1)
        ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssmax_eval", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html.j2").render(
        title=title or heading_of(sections, attentions, texts),
        sections=sections,
        attentions=[*filter(None, attentions)],
        losses=texts,
        records=records,
        records_text=json.dumps(records, indent=1),
    )
    return write(Path(out), page)


def heading_of(sections: Sequence[Any], attentions: Sequence[Any], losses: Sequence[Any]) -> str:
    """Return the heading of a page that holds these parts."""
    parts = {"needle in a haystack": sections, "attention on the needle": [*filter(None, attentions)], "loss": losses}
    text = ", ".join(name for name, part in parts.items() if part)
    return text[:1].upper() + text[1:]


def write(out: Path, page: str) -> Path:
    """Write a page at once and whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(out.name + ".tmp")
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, out)
    except (OSError, ValueError) as error:
        if out.name:
            out.with_name(out.name + ".tmp").unlink(missing_ok=True)
        raise UserError(f"report {str(out)!r}: cannot be written ({error}); give another path") from error
    return out


def trained(rows: pd.DataFrame, records: list[dict[str, Any]]) -> dict[str, int | None]:
    """Return each series' training length, where a run record tells it."""
    known = {record["run_id"]: record.get("model", {}).get("train_length") for record in records}
    if "run_id" not in rows:
        return {}
    first = rows.drop_duplicates("series").set_index("series")["run_id"]
    return {str(series): known.get(run_id) for series, run_id in first.items()}


class _CallableModule(ModuleType):
    """Lets `ssmax_eval.report(runs, "x.html")` and `ssmax_eval.report.figures` both be what they look like."""

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
