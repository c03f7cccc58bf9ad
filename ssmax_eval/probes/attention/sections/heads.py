"""The page's part on attention: mass on the answer, which heads retrieve, and whether they fade."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, Table, by_task, records

MEASURES = ("mass_answer", "mass_needle", "mass_next", "log_odds")  # that the page shows something of
SHOWN, PRINTED = 12, 3  # heads of a series in the tables of the page and of the terminal


@dataclass(frozen=True)
class Heads:
    """One task's attention: rows by head, means, the top head of each prompt, and fits of fading with each head's s."""

    number: int
    heading: str
    rows: pd.DataFrame
    by_head: pd.DataFrame
    scores: pd.DataFrame
    top: pd.DataFrame
    fading: pd.DataFrame
    fits: pd.DataFrame


class Attention(Section[Heads]):
    """Mass on the answer, which heads retrieve, and whether they fade."""

    place = 50
    heading = "attention on the needle"

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Heads]:
        out = []
        for number, heading, part in by_task(rows):
            by_head = statistics.heads(part, MEASURES)
            if by_head.empty:
                continue
            scores, fading = statistics.head_scores(by_head), statistics.fading(by_head)
            fits = with_learned(with_shortest(fading, scores), part, context.records)
            out.append(Heads(number, heading, part, by_head, scores, statistics.top_heads(by_head), fading, fits))
        return out

    def tables(self, found: Sequence[Heads]) -> Iterator[Table | str]:
        """Yield each prompt's highest mass over all heads by length, and the heads that hold most."""
        for each in found:
            lengths = sorted(each.by_head["context_length"].unique())
            top = each.top.pivot_table(index="series", columns="context_length", values="mass_answer", sort=False)
            lines = [
                [str(name), *("" if pd.isna(v) else f"{v:.3f}" for v in line)]
                for name, line in zip(top.index, top[lengths].to_numpy(), strict=True)
            ]
            of = f": {each.heading}" if len(found) > 1 else ""
            title = f"attention on the answer, highest head of each prompt, mean{of}"
            yield Table(title, ["series", *(f"{n:,}" for n in lengths)], lines)
            best = each.fits.sort_values("mass_answer", ascending=False).groupby("series", sort=False).head(PRINTED)
            lines = [
                [line["series"], f"{line['layer']}.{line['head']}", f"{line['mass_answer']:.3f}",
                 "" if pd.isna(line["b"]) else f"{line['b']:+.2f}" + interval(line)]
                for line in best.to_dict("records")
            ]  # fmt: skip
            columns = ["series", "layer.head", "mass at its shortest", "b of ln(mass/(1-mass)) = a + b ln n"]
            yield Table(f"heads with the most{of}", columns, lines)

    def summary(self, found: Sequence[Heads]) -> dict[str, Any]:
        return {"fading": records(each.fading for each in found)}

    def page(self, found: Sequence[Heads], context: Context) -> Markup:
        return self.rendered(context, sections=[section(each, context) for each in found])


SECTION = Attention()


def section(found: Heads, context: Context) -> dict[str, Any]:
    """Return what the template shows of one task's attention."""
    by_head, scores, fits = found.by_head, found.scores, found.fits
    figure = figures.attention_figure(by_head, scores, found.top, fits, context.train_lengths(found.rows))
    return {
        "heading": found.heading,
        "figure": context.drawn(figure, f"attention-{found.number:02}"),
        "by_trial": bool((by_head["plan"] == statistics.BY_TRIAL).any()),
        "lengths": [int(length) for length in sorted(by_head["context_length"].unique())],
        "tables": [
            table(fits[fits["series"] == name], scores, counted(by_head[by_head["series"] == name]), name)
            for name in by_head["series"].unique()
        ],
    }


def interval(line: dict[str, Any]) -> str:
    return "" if pd.isna(line["low"]) else f" [{line['low']:+.2f}, {line['high']:+.2f}]"


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


def counted(by_head: pd.DataFrame) -> str:
    """Say over how many prompts a mass at one length is the mean, and of how many trials these are."""
    each = by_head.drop_duplicates(["context_length", "depth_percent", "trial", "prompt_sha256"])
    prompts = each.groupby("context_length").size()
    said = f"{prompts.min()}" if prompts.min() == prompts.max() else f"{prompts.min()} to {prompts.max()}"
    trials = f" ({each['cluster'].nunique()} trials)" if (each["plan"] == statistics.BY_TRIAL).all() else ""
    return f"mean over {said} prompts{trials} at each length"


def table(fits: pd.DataFrame, scores: pd.DataFrame, over: str, name: str) -> dict[str, Any]:
    """Return a series' heads with the most mass at the shortest length: s, mass at each length, exponent with interval.

    One s that all heads share was given to them, not learned. Softmax and constant-n have none that grows with n.
    """
    part = scores[scores["series"] == name]
    mass = part.pivot_table(index=["layer", "head"], columns="context_length", values="mass_answer")
    known = fits["s"][fits["s"] != 0].dropna()
    one = float(known.iloc[0]) if len(known) > 1 and known.nunique() == 1 else None
    heads = [
        {
            "layer": int(line["layer"]),
            "head": int(line["head"]),
            "s": None if pd.isna(line["s"]) or not line["s"] else line["s"],
            "mass": [float(value) for value in mass.loc[(line["layer"], line["head"])]],
            "b": None if pd.isna(line["b"]) else (line["b"], line["low"], line["high"]),
        }
        for line in fits.sort_values("mass_answer", ascending=False).head(SHOWN).to_dict("records")
    ]
    lengths = [int(length) for length in mass.columns]
    return {"series": name, "lengths": lengths, "heads": heads, "all": len(fits), "over": over, "one_s": one}
