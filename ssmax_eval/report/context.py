"""What all parts of the page are given: the runs' records, the settings of the report, and what the records tell of a series."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from ..disk import whole
from ..statistics import Thresholds, default_baseline
from . import figures


@cache
def environment() -> jinja2.Environment:
    """Return what fills the templates of the page and of the probes' sections; all that is put into them is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("ssmax_eval", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    made.filters |= {"key_of": figures.key_of, "reached": reached, "compact": compact, "face": face, "signed": signed}
    return made


@dataclass(frozen=True)
class Context:
    """What all parts of the page are given.

    records: run.json of every run. folder: where figures are saved too, if anywhere. baseline: the series to compare with.
    details: gives rows the columns that tell of single rows, where they lack them.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    folder: Path | None = None
    baseline: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    details: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
    pending: list[tuple[Figure, str, Mapping[str, pd.DataFrame]]] = field(default_factory=list)

    def save(self) -> None:
        """Save the figures where they are wanted: after the page, which may yet fail."""
        for figure, name, data in self.pending:
            assert self.folder is not None
            figures.save(figure, self.folder, name)
            for each, table in data.items():
                with whole(self.folder / f"{each}.csv") as half:
                    table.to_csv(half, index=False)

    def render(self, template: str, **values: Any) -> Markup:
        """Fill a template, named by its path in the package."""
        return Markup(environment().get_template(template).render(**values))

    def lead(
        self,
        heading: str,
        parts: Sequence[Sequence[str]],
        folded: str = "",
        figure: Mapping[str, Any] | None = None,
        label: str = "",
    ) -> Markup:
        """Return a box for the top of the page: of each part the first sentence large, then a figure, then the others.

        folded: what unfolds the others, where they are folded away. figure: of `drawn`, label: what it shows.
        """
        told = {"heading": heading, "parts": parts, "folded": folded, "figure": figure, "label": label}
        return self.render("report/templates/lead.html.j2", **told)

    def drawn(self, figure: Figure, name: str, data: Mapping[str, pd.DataFrame] | None = None) -> dict[str, Any]:
        """Return a figure for the page, its SVG and its name, and keep it for `save` where figures are wanted.

        data: tables behind it, by name, which are saved beside it as CSV.
        """
        if self.folder is not None:
            self.pending.append((figure, name, data or {}))
        return {"svg": Markup(figures.svg(figure)), "name": name}

    def of(self, rows: pd.DataFrame, part: str) -> dict[str, Any]:
        """Return what the run record of each series' first row says in record["model"][part]; None where it says nothing."""
        known = {record["run_id"]: record.get("model", {}).get(part) for record in self.records}
        if "run_id" not in rows:
            return {}
        first = rows.drop_duplicates("series").set_index("series")["run_id"]
        return {str(series): known.get(run_id) for series, run_id in first.items()}

    def with_reach(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return needle rows with `out_of_reach`, where a run's mechanism carries nothing further than so many tokens.

        A needle is out of reach if it ends further before the question than the windows of all layers add up to.
        """
        reach = {record["run_id"]: (record.get("attention") or {}).get("reach") for record in self.records}
        limits = rows["run_id"].map(reach).astype(float) if "run_id" in rows else pd.Series(dtype=float)
        if not limits.notna().any() or "prompt_sha256" not in rows:
            return rows
        told = self.details(rows[limits.notna()])
        beyond = told["question_start"].astype(float) - told["value_end"].astype(float) >= limits[told.index]
        return rows.assign(out_of_reach=beyond.reindex(rows.index, fill_value=False))

    def train_lengths(self, rows: pd.DataFrame) -> dict[str, int | None]:
        """Return each series' training length in tokens, where a run record tells it."""
        return self.of(rows, "train_length")

    def baseline_of(self, rows: pd.DataFrame) -> str:
        """Return the series that the others are compared with: the one asked for if it is among these, else the default."""
        if self.baseline is not None and (rows["series"] == self.baseline).any():
            return self.baseline
        return default_baseline(rows)


def reached(line: dict[str, Any], name: str, beyond: str) -> str:
    """Write a tested length of statistics.effective_lengths."""
    value = line[name]
    return "none" if value != value else f"{'≥ ' if line[beyond] else ''}{int(value):,}"


def face(cell: dict[str, Any]) -> Markup:
    """Write what stands in a cell of a grid; a screen reader's name for it begins with the same."""
    value = "failed" if cell["value"] is None else f"{cell['value']:.2f}"
    interval = "" if cell["value"] is None else f"{cell['low']:.2f}–{cell['high']:.2f}"
    failed = f"{cell['failed']} failed" if cell["failed"] else ""
    notes = [Markup("<span>{}</span>").format(each) for each in (interval, failed, cell["placed"]) if each]
    return Markup("{} <small>{}</small>").format(value, Markup(" ").join(notes))


def signed(value: float, digits: int = 2) -> str:
    """Write a difference with its sign; what is 0 to so many digits has none."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def compact(data: Any) -> Markup:
    """Write JSON that can stand in a script element: no character of it ends that, or starts a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
