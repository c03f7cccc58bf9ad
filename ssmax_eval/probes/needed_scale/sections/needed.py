"""The page's part on the needed scale: the best factor by length, and the law that it follows."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, Table, by_task, records
from ..words import SAID, Found, NeededS, in_short, in_words, main, ranged


class NeededScale(Section[Found]):
    """The best factor on the answer's scores by length, and the law that it follows."""

    place = 55
    lead_place = 20
    heading = "needed scale"

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Found]:
        out = []
        for number, heading, part in by_task(rows):
            found = statistics.best_factors(part)
            if found:
                lengths = context.train_lengths(part)
                laws = statistics.scale_laws(found, lengths)
                lines = pd.concat([each.lines for each in found], ignore_index=True)
                growth = statistics.growth_told_twice(statistics.scale_growth(found), laws)
                first = part.drop_duplicates("series").set_index("series")
                mechanisms, models = (
                    {str(series): str(each) for series, each in first[name].items()} for name in ("attention", "model")
                )
                s = s_of(part, laws, context)
                out.append(Found(number, heading, lines, laws, growth, s, mechanisms, models, lengths))
        return out

    def tables(self, found: Sequence[Found]) -> Iterator[Table | str]:
        """Yield the best factor by length, what it finds, and the laws."""
        for each in found:
            lengths = sorted(each.lines.loc[each.lines["control"] != "needle-only", "context_length"].unique())
            columns = ["series", "scaled", *(f"{n:,}" for n in lengths)]
            for title, face in FACES.items():
                yield Table(title.format(interval=interval(each.lines)), columns, grid(each.lines, lengths, face))
            for name, lines in main(each.laws).groupby("series", sort=False):
                yield Table(f"laws of the best C by nll: {name}", LAW_COLUMNS, law_lines(lines))
            yield from in_words(each)

    def summary(self, found: Sequence[Found]) -> dict[str, Any]:
        return {
            "needed_scale": records(each.lines for each in found),
            "scale_laws": records(each.laws for each in found),
            "scale_growth": records(each.growth for each in found),
            "needed_s": [
                {"series": name, "s_learned": s.learned, "s_needed": s.needed, "low": s.low, "high": s.high}
                for each in found
                for name, s in each.s.items()
            ],
        }

    def lead(self, found: Sequence[Found], context: Context) -> Markup:
        return context.lead("Needed scale", [in_short(each) for each in found])

    def page(self, found: Sequence[Found], context: Context) -> Markup:
        return self.rendered(context, sections=[section(each, context) for each in found])


SECTION = NeededScale()
LAW_COLUMNS = ["law", "fitted [95%]", "error at lengths left out", "weight"]


def best(line: dict[str, Any]) -> str:
    """Write the best factor by nll with its interval."""
    end = "" if not line["at_an_end"] else "≤ " if line["best"] < 1 else "≥ "
    told = "" if pd.isna(line["low"]) else f" [{line['low']:.2f}, {line['high']:.2f}]"
    return f"{end}{line['best']:.2f}{told}"


def best_by_accuracy(line: dict[str, Any]) -> str:
    if pd.isna(line["best_by_accuracy"]):
        return "–"
    low, high = line["low_by_accuracy"], line["high_by_accuracy"]
    return f"{line['best_by_accuracy']:.2f}" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")


FACES = {
    "needed scale: best factor C on the answer's scores, by nll, {interval}": best,
    "best factor C by exact matches (the middle of the best; – where all C are alike), {interval}": best_by_accuracy,
    "mean nll of the answer, nats: at the best C (as it is)": lambda line: (
        f"{line['nll']:.2f} ({line['nll_as_is']:.2f})"
    ),
    "exact matches, share: at their best C (as it is)": lambda line: (
        f"{line['accuracy']:.2f} ({line['accuracy_as_is']:.2f})"
    ),
}


def interval(lines: pd.DataFrame) -> str:
    """Say over how many trials the intervals of a table are, or why there are none."""
    trials = ranged(lines["trials"])
    if lines["low"].notna().any():
        return f"with its 95% interval over {trials} trials"
    return f"without an interval: {trials} trials are too few, {statistics.FEWEST} or more give one"


def grid(lines: pd.DataFrame, lengths: Sequence[int], face: Any) -> list[list[str]]:
    """Return a line for each series and thing that is scaled, a cell for each length; a prompt without haystack has one for all."""
    out = []
    for (name, control, scaled), part in lines.groupby(["series", "control", "scaled"], sort=False, dropna=False):
        what = str(scaled) if pd.isna(control) else f"{scaled}, {control}"
        at = {line["context_length"]: face(line) for line in part.to_dict("records")}
        cells = [*at.values(), *[""] * len(lengths)][: len(lengths)] if control == "needle-only" else None
        out.append([str(name), what, *(cells or [at.get(n, "") for n in lengths])])
    return out


def law_lines(lines: pd.DataFrame) -> list[list[str]]:
    return [
        [f"C = {SAID[line['law']]}", fitted(line),
         "–" if pd.isna(line["error"]) else f"{math.expm1(line['error']):.1%}",
         "–" if pd.isna(line["weight"]) else f"{line['weight']:.0%}"]
        for line in lines.to_dict("records")
    ]  # fmt: skip


def fitted(line: dict[str, Any]) -> str:
    """Write a law's coefficients, with the interval of one alone."""
    names = [name for name in "absg" if not pd.isna(line[name])]
    # s is the model's own, and this coefficient is on top of that
    text = ", ".join(f"{'a' if name == 's' else name} {line[name]:.3g}" for name in names)
    return text if pd.isna(line["low"]) else f"{text} [{line['low']:.3g}, {line['high']:.3g}]"


def s_of(rows: pd.DataFrame, laws: pd.DataFrame, context: Context) -> dict[str, NeededS]:
    """Return the learned s (mean over heads) of each series and the s that its answers need; None where there is none.

    Under softmax the needed s is the fitted law's. A model with s ln n of its own has the factor on top of it: learned s times the
    fitted constant.
    """
    known = {record["run_id"]: record.get("attention") or {} for record in context.records}
    first = rows.drop_duplicates("series")
    out = {}
    for name, run_id in zip(
        first["series"], first.get("run_id", pd.Series(index=first.index, dtype=object)), strict=True
    ):
        attention = known.get(run_id, {})
        named = str(attention.get("attention")).partition(":")[0]
        heads = [s for layer in attention.get("learned", {}).values() for s in layer.get("s", [])]
        learned = float(np.mean(heads)) if named == "ssmax" and heads else None
        law, coefficient = ("s ln n", "s") if named == "softmax" else ("a", "a")
        own = main(laws)[lambda table, name=name, law=law: (table["series"] == name) & (table["law"] == law)]
        line = dict.fromkeys((coefficient, "low", "high"), math.nan) | (own.to_dict("records") or [{}])[0]
        times = 1.0 if named == "softmax" else math.nan if learned is None else learned
        needed, low, high = (times * float(line[each]) for each in (coefficient, "low", "high"))
        out[str(name)] = NeededS(learned, *(each if math.isfinite(each) else None for each in (needed, low, high)))
    return out


def section(found: Found, context: Context) -> dict[str, Any]:
    """Return what the template shows of one task."""
    figure = figures.needed_scale_figure(found.lines, found.laws, found.train_lengths)
    lengths = sorted(found.lines.loc[found.lines["control"] != "needle-only", "context_length"].unique())
    return {
        "heading": found.heading,
        "figure": context.drawn(figure, f"needed-scale-{found.number:02}"),
        "lengths": [int(n) for n in lengths],
        "tables": [
            (title.format(interval=interval(found.lines)), grid(found.lines, lengths, face))
            for title, face in FACES.items()
        ],
        "law_columns": LAW_COLUMNS,
        "laws": [
            (str(name), figures.key_of(str(name)), law_lines(lines))
            for name, lines in main(found.laws).groupby("series", sort=False)
        ],
        "words": in_words(found),
    }
