"""One self-contained HTML page of runs. Reads scores, never computes correctness; imports no torch."""

import base64
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import ModuleType
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from .. import statistics
from ..errors import UserError
from ..results import Run, find_runs, load_results
from . import causes, grids, losses, masses, prompts, training
from .context import Context


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
    baseline: the series that the others are compared with, by default the first. attended, blow_up: where the causes of
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
    kinds = [baseline_first(statistics.with_series(part), context) for part in (of_prompts, of_documents) if len(part)]
    names = [*dict.fromkeys(name for part in kinds for name in part["series"])]
    known_baseline(baseline, names)
    parts: dict[str, list[Any]] = {
        name: [] for name in ("sections", "causes", "thetas", "seeds", "attentions", "losses")
    }
    packed, curves = [], None
    if not of_prompts.empty:
        rows = kinds[0]
        curves = training.curves(rows, context)
        for number, (_, part) in enumerate(rows.groupby(statistics.TASK, sort=False), 1):
            heading = statistics.task_name(part)
            given = (number, heading, part, context)
            parts["sections"].append(grids.section(*given))
            parts["causes"].append(causes.section(*given))
            parts["thetas"].append(causes.theta_section(*given))
            parts["seeds"].append(training.seeds_section(*given))
            parts["attentions"].append(masses.section(*given))
            packed.append(prompts.payload(heading, part, context.thresholds))
    if not of_documents.empty:
        rows = kinds[-1]
        for number, (_, part) in enumerate(rows.groupby(statistics.TEXT, sort=False), 1):
            parts["losses"].append(losses.section(number, part, context))
    written = write(
        Path(out), page(title, {k: [*filter(None, v)] for k, v in parts.items()}, packed, curves, names, context)
    )
    context.save()
    return written


def page(
    title: str,
    parts: dict[str, list[Any]],
    packed: list[dict[str, Any]],
    curves: dict[str, Any] | None,
    names: list[str],
    context: Context,
) -> str:
    """Return the page's HTML; nothing in it may run or load but the script that stands in it."""
    from .figures import key_of

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssmax_eval", "report/templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"key_of": key_of, "reached": reached, "compact": compact, "face": face}
    script, style = ((files(__package__) / "templates" / name).read_text("utf-8") for name in ("page.js", "page.css"))
    return environment.get_template("page.html.j2").render(
        title=title or heading_of(parts["sections"], parts["attentions"], parts["losses"]),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        series=[{"name": name, "key": key_of(name)} for name in dict.fromkeys(names)],
        cause_names=statistics.CAUSES,
        prompts=packed,
        curves=curves,
        records=context.records,
        records_text=json.dumps(context.records, indent=1),
        **parts,
    )


def reached(line: dict[str, Any], name: str, beyond: str) -> str:
    """Write a tested length of statistics.effective_lengths."""
    value = line[name]
    return "none" if value != value else f"{'≥ ' if line[beyond] else ''}{int(value):,}"


def face(cell: dict[str, Any]) -> Markup:
    """Write what stands in a cell of a grid; a screen reader's name for it begins with the same."""
    value = "failed" if cell["value"] is None else f"{cell['value']:.2f}"
    interval = "" if cell["value"] is None else f"{cell['low']:.2f}–{cell['high']:.2f}"
    failed = f"{cell['failed']} failed" if cell["failed"] else ""
    return Markup("{} <small>{}</small>").format(value, " ".join(filter(None, [interval, failed])))


def compact(data: Any) -> Markup:
    """Write JSON that can stand in a script element: no character of it ends that, or starts a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


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
    """Return what sorts runs of a folder by the names they have on the page: model, law, RoPE."""
    record = run.record()
    parts = [record.get(part) or {} for part in ("model", "attention", "rope")]
    return str(parts[0].get("label", "")), str(parts[1].get("attention")), str(parts[2].get("requested")), run.run_id


def baseline_first(rows: pd.DataFrame, context: Context) -> pd.DataFrame:
    """Return rows with those of the baseline in front: what is compared with it stands beside it on the page."""
    return rows.iloc[np.argsort(rows["series"] != context.baseline_of(rows), kind="stable")]


def known_baseline(baseline: str | None, names: list[str]) -> None:
    if baseline is not None and baseline not in names:
        raise UserError(f"baseline {baseline!r}: no such series; allowed are {'; '.join(names)}")


def heading_of(sections: Sequence[Any], attentions: Sequence[Any], losses: Sequence[Any]) -> str:
    """Return the heading of a page that holds these parts."""
    parts = {"needle in a haystack": sections, "attention on the needle": [*filter(None, attentions)], "loss": losses}
    text = ", ".join(name for name, part in parts.items() if part)
    return text[:1].upper() + text[1:]


def write(out: Path, page: str) -> Path:
    """Write a page at once and whole. Raises UserError; what else is there stays."""
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"report {str(out)!r}: allowed are names that end with .html")
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=out.parent, suffix=".tmp", delete=False, encoding="utf-8") as stream:
            temporary = Path(stream.name)
            stream.write(page)
        temporary.chmod(0o666 & ~umask())
        os.replace(temporary, out)
    except (OSError, ValueError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"report {str(out)!r}: cannot be written ({reason}); give another path") from error
    return out


def umask() -> int:
    """Return the permissions that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _CallableModule(ModuleType):
    """Lets `ssmax_eval.report(runs, "x.html")` and `ssmax_eval.report.figures` both be what they look like."""

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
