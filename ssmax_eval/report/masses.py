"""The page's part on attention: mass on the answer, which heads retrieve, and whether they fade."""

from typing import Any

import pandas as pd

from .. import statistics
from . import figures
from .context import Context

SHOWN = 12  # heads of a series in the table
MEASURES = ("mass_answer", "mass_needle", "mass_next", "log_odds")  # that the page shows something of


def section(number: int, heading: str, rows: pd.DataFrame, context: Context) -> dict[str, Any] | None:
    """Return what the template shows of one task's attention; None where no row has masses."""
    by_head = statistics.heads(rows, MEASURES)
    if by_head.empty:
        return None
    scores, top, fits = statistics.head_scores(by_head), statistics.top_heads(by_head), statistics.fading(by_head)
    fits = with_learned(with_shortest(fits, scores), rows, context.records)
    figure = figures.attention_figure(by_head, scores, top, fits, context.train_lengths(rows))
    return {
        "heading": heading,
        "figure": context.drawn(figure, f"attention-{number:02}"),
        "by_trial": bool((by_head["plan"] == statistics.BY_TRIAL).any()),
        "lengths": [int(length) for length in sorted(by_head["context_length"].unique())],
        "tables": [table(fits[fits["series"] == name], scores, name) for name in by_head["series"].unique()],
    }


def with_shortest(fits: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Add each head's mean mass on the answer at its series' shortest length."""
    shortest = scores["context_length"] == scores.groupby("series")["context_length"].transform("min")
    return fits.merge(scores.loc[shortest, ["series", "layer", "head", "mass_answer"]], on=["series", "layer", "head"])


def with_learned(fits: pd.DataFrame, rows: pd.DataFrame, records: list[dict[str, Any]]) -> pd.DataFrame:
    """Add the s of each head: what its run's record says was learned of s ln n, 0 for scales that do not grow with n, else NaN."""
    known: dict[str, dict[tuple[int, int], float]] = {}
    by_run = {record["run_id"]: record.get("attention", {}) for record in records}
    first = rows.drop_duplicates("series").set_index("series")
    for name, row in first.iterrows():
        attention = by_run.get(row.get("run_id"), {})
        scaled = attention.get("scaled_layers") or []
        learned = [attention.get("learned", {}).get(layer, {}).get("s", []) for layer in scaled]
        skipped = len(attention.get("unscaled_layers") or [])
        if not skipped and str(attention.get("attention")).startswith(
            "ssmax"
        ):  # a windowed layer would shift the count
            known[str(name)] = {(i, j): s for i, values in enumerate(learned) for j, s in enumerate(values)}
    constant = set(first.index[first["attention"].str.match(r"(softmax|constant-n)\b")])
    values = [
        0.0 if name in constant else known.get(name, {}).get((layer, head), float("nan"))
        for name, layer, head in zip(fits["series"], fits["layer"], fits["head"], strict=True)
    ]
    return fits.assign(s=values)


def table(fits: pd.DataFrame, scores: pd.DataFrame, name: str) -> dict[str, Any]:
    """Return a series' heads with the most mass at the shortest length: s, mass at each length, exponent with interval."""
    part = scores[scores["series"] == name]
    mass = part.pivot_table(index=["layer", "head"], columns="context_length", values="mass_answer")
    heads = [
        {
            "layer": int(line["layer"]),
            "head": int(line["head"]),
            "s": None if pd.isna(line["s"]) else line["s"],
            "mass": [float(value) for value in mass.loc[(line["layer"], line["head"])]],
            "b": None if pd.isna(line["b"]) else (line["b"], line["low"], line["high"]),
        }
        for line in fits.sort_values("mass_answer", ascending=False).head(SHOWN).to_dict("records")
    ]
    return {"series": name, "lengths": [int(length) for length in mass.columns], "heads": heads, "all": len(fits)}
