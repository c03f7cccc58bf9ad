"""What a command leaves in the terminal: tables, or one JSON object, and the report's path."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import statistics
from .printable import printable
from .results import load_results
from .store import Run, run_id_of
from .verdict import verdict

HEADS = 3  # of each series in the table of heads


def print_runs(
    runs: list[Run], output_path: Path, want_report: bool, as_json: bool, thresholds: statistics.Thresholds
) -> None:
    """Print what the runs found and write their report; stdout ends with the report's path."""
    from .report import report  # the plotting libraries take seconds, which the other tables need not wait for

    page = None
    if want_report:
        folder = Path("reports") if output_path == Path("results") else output_path / "reports"
        names = {run.folder.parent.name for run in runs}
        name = names.pop() if len(names) == 1 else "run"
        page = report(
            runs, folder / f"{name}-{run_id_of({'runs': [run.run_id for run in runs]})[:8]}.html", **asdict(thresholds)
        )
    rows = load_results(*runs)
    prompts, documents = (named(part) for part in (statistics.of_prompts(rows), statistics.of_documents(rows)))
    trained = {run.run_id: run.record().get("model", {}).get("train_length") for run in runs}
    found = verdicts(prompts, trained) if not prompts.empty else []
    if as_json:
        known = summary(runs, prompts, documents, thresholds) | {"verdict": found}
        print(json.dumps(known | {"report": None if page is None else str(page)}))
        return
    if not prompts.empty:
        print_grids(prompts)
        print_heads(prompts)
        print_causes(prompts, thresholds)
        for line in found:
            print(" ".join([f"{line['series']}:", *line["sentences"]]))
    if not documents.empty:
        print_losses(documents)
    if failed := int(rows["error"].notna().sum()):
        reasons = rows["error"].value_counts().items()
        print(f"{failed} rows without a score: {', '.join(f'{reason} ({count})' for reason, count in reasons)}")
    print("\n".join(f"run {run.folder}" for run in runs))
    if page is not None:
        print(page)


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
        print(f"run {run['run']}: {run['model']}, {run['attention']}, RoPE {run['rope']}: {left}")


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Name the series of one kind of rows: apart, so that a mechanism names only the tables in which one is."""
    return rows if rows.empty else statistics.with_series(rows)


def verdicts(prompts: pd.DataFrame, train_lengths: dict[str, int | None]) -> list[dict[str, Any]]:
    """Return what the page says in words, of every task; train_lengths by run_id."""
    out = []
    grid = prompts[prompts["control"].isna()]
    for _, part in grid.groupby(statistics.TASK, sort=False):
        first = part.drop_duplicates("series").set_index("series")["run_id"]
        trained = {str(name): train_lengths.get(run_id) for name, run_id in first.items()}
        out += verdict(part, statistics.default_baseline(part), statistics.effective_lengths(part), trained)
    return out


def summary(
    runs: list[Run], prompts: pd.DataFrame, documents: pd.DataFrame, thresholds: statistics.Thresholds
) -> dict[str, Any]:
    """Return what the tables show as one JSON object."""
    out: dict[str, Any] = {"runs": [str(run.folder) for run in runs], "failed": 0}
    if not prompts.empty:
        out["cells"] = records(statistics.cells(prompts))
        out["failed"] += int(prompts["correct"].isna().sum())
        if "mass_answer" in prompts:
            out["fading"] = records(statistics.fading(statistics.heads(prompts)))
            out["causes"] = records(statistics.cause_counts(statistics.with_causes(prompts, thresholds)))
        out["effective_lengths"] = records(statistics.effective_lengths(prompts))
        out["comparison"] = records(
            statistics.compare(prompts, statistics.default_baseline(prompts), ("context_length",))
        )
    if not documents.empty:
        out["loss"] = records(statistics.loss_by_position(documents))
        out["context_gain"] = records(statistics.context_gain(documents))
        failed = documents[documents["error"].notna()]
        out["failed"] += len(failed.drop_duplicates([*statistics.TEXT, "series", "document_sha256"]))
    return out


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's lines, null for what is missing or infinite."""
    frame = frame.replace([math.inf, -math.inf], math.nan)
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def print_losses(rows: pd.DataFrame) -> None:
    """Print the loss by position and the context gain, a column for each series."""
    for by, part in rows.groupby(statistics.TEXT, sort=False):
        series = [*dict.fromkeys(part["series"])]
        for table, value, title in (
            (
                statistics.loss_by_position(part),
                "loss",
                f"loss by tokens in front, nats: text {by[0]}, {by[2]:,.0f} tokens",
            ),
            (
                statistics.context_gain(part),
                "context_gain",
                f"loss of the last {by[3]:,.0f} tokens, with all before minus alone",
            ),
        ):
            if table.empty:
                continue
            name = "position_start" if value == "loss" else "position_end"
            at = {(line[name], line["series"]): line for line in table.to_dict("records")}
            lines = [
                [f"{key:,}", *(interval(at.get((key, each)), value) for each in series)]
                for key in sorted(table[name].unique())
            ]
            print_table(["from" if value == "loss" else "length", *series], lines, title)


def interval(line: dict[str, Any] | None, value: str) -> str:
    if line is None or pd.isna(line[value]):
        return "" if line is None else "failed"
    return f"{line[value]:.3f}" + ("" if pd.isna(line["low"]) else f" ± {line['high'] - line[value]:.3f}")


def print_heads(rows: pd.DataFrame) -> None:
    """Print, where rows have attention masses, each prompt's highest mass over all heads by length, and the heads that hold most."""
    by_head = statistics.heads(rows) if "mass_answer" in rows else pd.DataFrame()
    for _, part in by_head.groupby(statistics.TASK, sort=False) if len(by_head) else ():
        lengths = sorted(part["context_length"].unique())
        top = statistics.top_heads(part).pivot_table(
            index="series", columns="context_length", values="mass_answer", sort=False
        )
        lines = [
            [str(name), *("" if pd.isna(v) else f"{v:.3f}" for v in line)]
            for name, line in zip(top.index, top[lengths].to_numpy(), strict=True)
        ]
        print_table(
            ["series", *(f"{n:,}" for n in lengths)],
            lines,
            "attention on the answer, highest head of each prompt, mean",
        )
        scores, fits = statistics.head_scores(part), statistics.fading(part)
        at_shortest = scores["context_length"] == scores.groupby("series")["context_length"].transform("min")
        shortest = scores[at_shortest].sort_values("mass_answer", ascending=False)
        best = shortest.groupby("series", sort=False).head(HEADS).merge(fits, on=["series", "layer", "head"])
        lines = [
            [line["series"], f"{line['layer']}.{line['head']}", f"{line['mass_answer']:.3f}",
             "" if pd.isna(line["b"]) else f"{line['b']:+.2f}" + exponent_interval(line)]
            for line in best.to_dict("records")
        ]  # fmt: skip
        print_table(
            ["series", "layer.head", "mass at its shortest", "b of ln(mass/(1-mass)) = a + b ln n"],
            lines,
            "heads with the most",
        )


def exponent_interval(line: dict[str, Any]) -> str:
    return "" if pd.isna(line["low"]) else f" [{line['low']:+.2f}, {line['high']:+.2f}]"


def print_causes(rows: pd.DataFrame, thresholds: statistics.Thresholds) -> None:
    """Print, where rows have attention masses, how many prompts of each length were found, and why the others were not."""
    if "top_mass_answer" not in rows:
        return
    explained = statistics.with_causes(rows, thresholds)
    for _, part in explained.groupby(statistics.TASK, sort=False):
        counts = statistics.cause_counts(part)
        lengths = sorted(counts["context_length"].unique())
        lines = []
        for name, own in counts.groupby("series", sort=False):
            at = own.set_index("context_length")
            lines += [
                [str(name), cause, *(str(at.loc[n, cause]) if n in at.index else "" for n in lengths)]
                for cause in statistics.CAUSES
                if own[cause].any()
            ]
        print_table(["series", "cause", *(f"{n:,}" for n in lengths)], lines, "prompts, and why they were not found")


def print_grids(rows: pd.DataFrame) -> None:
    """Print each series' grid, depths down, lengths across, the mean of each length last."""
    for _, part in rows.groupby([*statistics.TASK, "series"], sort=False):
        cells, means = statistics.cells(part), statistics.lengths(part)
        if cells.empty:
            continue
        lengths = sorted(cells["context_length"].unique())
        at = {(cell["depth_percent"], cell["context_length"]): cell for cell in cells.to_dict("records")}
        lines = [
            [f"{depth:g}%", *(value_text(at.get((depth, n))) for n in lengths)]
            for depth in sorted(cells["depth_percent"].unique())
        ]
        by_length = {line["context_length"]: line for line in means.to_dict("records")}
        lines.append(["mean", *(value_text(by_length.get(n)) for n in lengths)])
        title = f"{part['series'].iloc[0]}: {statistics.task_name(part)}"
        print_table(["depth", *(f"{n:,}" for n in lengths)], lines, title)
    extra = statistics.controls(rows)
    for line in extra.to_dict("records"):
        at_length = "" if line["control"] == "needle-only" else f" at {line['context_length']:,.0f}"
        print(f"{line['series']}: {line['control']}{at_length}: {value_text(line)} of {line['scored']} prompts")


def value_text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['accuracy']:.2f}" if cell["scored"] else "failed"


WIDEST = 2000  # characters of a table's line in a log


def print_table(columns: list[str], lines: list[list[str]], title: str = "") -> None:
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
