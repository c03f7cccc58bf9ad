"""What a command leaves in the terminal: tables, or one JSON object, and the report's path."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import statistics
from .printable import printable
from .store import Run, run_id_of

if TYPE_CHECKING:
    from .report import Findings


def print_runs(
    runs: list[Run],
    output_path: Path,
    want_report: bool,
    as_json: bool,
    thresholds: statistics.Thresholds,
    tables: Path | None = None,
) -> None:
    """Print what the runs found and write their report; stdout ends with the report's path. tables: where every table is written."""
    from .report import context_of, found_in, written
    from .report.files import save_tables

    context = context_of(runs, **asdict(thresholds))
    findings = found_in(runs, context)
    page = None
    if want_report and findings.found:
        folder = Path("reports") if output_path == Path("results") else output_path / "reports"
        probes = {run.probe for run in runs}
        name = probes.pop() if len(probes) == 1 else "run"
        out = folder / f"{name}-{run_id_of({'runs': [run.run_id for run in runs]})[:8]}.html"
        page = written(out, "", findings, context)
    if tables is not None:
        save_tables(findings.found, tables)
    failed = sum(findings.failed.values())
    told = {"runs": [str(run.folder) for run in runs], "failed": failed, "report": None if page is None else str(page)}
    if as_json:
        print_found(findings, told, as_json)
        return
    print_found(findings, {}, as_json)
    if failed:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in findings.failed.items())
        print(f"{failed} rows without a score: {reasons}")
    print("\n".join(f"run {run.folder}" for run in runs))
    if page is not None:
        print(page)


def print_found(findings: "Findings", told: dict[str, Any], as_json: bool) -> None:
    """Print the tables of what was found, and what is told of it; or all as one JSON object."""
    from .report.section import Table

    if as_json:
        known = {name: value for each in findings.found for name, value in each.summary().items()}
        print(json.dumps({**known, **told}))
        return
    for each in findings.found:
        for part in each.tables():
            if isinstance(part, Table):
                print_table(part.columns, part.lines, part.title)
            else:
                print(part)
    if told:
        print("\n".join(str(value) for value in told.values()))


def print_plan(plan: dict[str, Any], as_json: bool) -> None:
    """Print what a dry run found: models, a line for each context length, the whole, and where rows would go."""
    if as_json:
        print(json.dumps({"dry_run": True, **{name: value for name, value in plan.items() if name != "in_words"}}))
        return
    for each in plan["models"]:
        length = each["train_length"]
        print(f"{each['model']}: trained at {f'{length:,} tokens' if length else 'a length it does not tell'}")
    columns = ["probe", "context length", "prompts", "tokens", "operations", "share of the work"]
    lines = [
        [line["probe"], f"{line['context_length']:,}", f"{line['prompts']:,}", f"{line['tokens']:,}",
         "unknown" if line["operations"] is None else f"{line['operations']:.1e}", f"{100 * line['share']:.0f}%"]
        for line in plan["lengths"]
    ]  # fmt: skip
    if lines:
        print_table(columns, lines)
    print(f"cost: {plan['in_words']}")
    for run in plan["runs"]:
        left = f"{run['prompts_left']:,} to do" if run["prompts_left"] else "finished"
        what = ", ".join(
            f"{name} {value}" for name, value in run["apart"].items() if isinstance(value, str | int | float)
        )
        said = [run["model"], run["attention"], f"RoPE {run['rope']}", what]
        print(printable(f"run {run['run']}: {', '.join(filter(None, said))}: {left}"))


WIDEST = 2000  # characters of a table's line in a log


def print_table(columns: Sequence[str], lines: Sequence[Sequence[str]], title: str = "") -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(str(part))) for part in line))  # before it is measured
    if title:
        print(title)
    if sys.stdout.isatty():
        Console(color_system=None).print(table)  # no sequences of its own: all that are printed would come from data
        return
    # as wide as it needs when nobody looks: a log must not wrap cells
    widest = Console(width=WIDEST)
    Console(width=widest.measure(table).maximum, color_system=None).print(table)
