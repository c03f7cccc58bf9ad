"""The page's part on the needed scale: the best factor by length, and the law that it follows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, Table, by_task, records


@dataclass(frozen=True)
class Found:
    """One task's best factors and laws, and of each series the s that its model learned, the mean over heads, and the s that it needs."""

    number: int
    heading: str
    lines: pd.DataFrame
    laws: pd.DataFrame
    growth: pd.DataFrame
    s: dict[str, tuple[float | None, float | None]]
    mechanisms: dict[str, str]
    train_lengths: dict[str, int | None]


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
                growth = statistics.scale_growth(found)
                first = part.drop_duplicates("series").set_index("series")["attention"]
                mechanisms = {str(name): str(each) for name, each in first.items()}
                out.append(Found(number, heading, lines, laws, growth, s_of(part, laws, context), mechanisms, lengths))
        return out

    def tables(self, found: Sequence[Found]) -> Iterator[Table | str]:
        """Yield the best factor by length, what it finds, and the laws."""
        for each in found:
            lengths = sorted(each.lines.loc[each.lines["control"] != "needle-only", "context_length"].unique())
            columns = ["series", "scaled", *(f"{n:,}" for n in lengths)]
            for title, face in FACES.items():
                yield Table(title, columns, grid(each.lines, lengths, face))
            for name, lines in main(each.laws).groupby("series", sort=False):
                yield Table(f"laws of the best C by nll: {name}", LAW_COLUMNS, law_lines(lines))
            yield from in_words(each)

    def summary(self, found: Sequence[Found]) -> dict[str, Any]:
        return {
            "needed_scale": records(each.lines for each in found),
            "scale_laws": records(each.laws for each in found),
            "scale_growth": records(each.growth for each in found),
            "needed_s": [
                {"series": name, "s_learned": learned, "s_needed": needed}
                for each in found
                for name, (learned, needed) in each.s.items()
            ],
        }

    def lead(self, found: Sequence[Found], context: Context) -> Markup:
        return context.lead("Needed scale", [in_short(each) for each in found])

    def page(self, found: Sequence[Found], context: Context) -> Markup:
        return self.rendered(context, sections=[section(each, context) for each in found])


SECTION = NeededScale()
TELLING = 4  # context lengths
LAW_COLUMNS = ["law", "fitted", "error at lengths left out", "weight"]


def best(line: dict[str, Any]) -> str:
    """Write the best factor by nll with its interval."""
    end = "" if not line["at_an_end"] else "≤ " if line["best"] < 1 else "≥ "
    told = "" if pd.isna(line["low"]) else f" [{line['low']:.2f}, {line['high']:.2f}]"
    return f"{end}{line['best']:.2f}{told}"


def best_by_accuracy(line: dict[str, Any]) -> str:
    low, high = line["low_by_accuracy"], line["high_by_accuracy"]
    return f"{line['best_by_accuracy']:.2f}" + ("" if pd.isna(low) else f" [{low:.2f}, {high:.2f}]")


FACES = {
    "needed scale: best factor C on the answer's scores, by nll, with its 95% interval": best,
    "best factor C by exact matches (the middle of the best), with its 95% interval": best_by_accuracy,
    "mean nll of the answer, nats: at the best C (as it is)": lambda line: (
        f"{line['nll']:.2f} ({line['nll_as_is']:.2f})"
    ),
    "exact matches, share: at their best C (as it is)": lambda line: (
        f"{line['accuracy']:.2f} ({line['accuracy_as_is']:.2f})"
    ),
}


def grid(lines: pd.DataFrame, lengths: Sequence[int], face: Any) -> list[list[str]]:
    """Return a line for each series and thing that is scaled, a cell for each length; a prompt without haystack has one for all."""
    out = []
    for (name, control, scaled), part in lines.groupby(["series", "control", "scaled"], sort=False, dropna=False):
        what = str(scaled) if pd.isna(control) else f"{scaled}, {control}"
        at = {line["context_length"]: face(line) for line in part.to_dict("records")}
        cells = [*at.values(), *[""] * len(lengths)][: len(lengths)] if control == "needle-only" else None
        out.append([str(name), what, *(cells or [at.get(n, "") for n in lengths])])
    return out


def main(table: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of the question and answer's rows, all heads, on the grid's prompts."""
    return table[(table["scaled"] == "all") & table["control"].isna()]


def law_lines(lines: pd.DataFrame) -> list[list[str]]:
    return [
        [f"C = {line['law']}", ", ".join(f"{name} {line[name]:.3g}" for name in "absg" if not pd.isna(line[name])),
         "–" if pd.isna(line["error"]) else f"{math.expm1(line['error']):.1%}",
         "–" if pd.isna(line["weight"]) else f"{line['weight']:.0%}"]
        for line in lines.to_dict("records")
    ]  # fmt: skip


def in_words(found: Found) -> list[str]:
    """Say how the needed scale of each series grows with length, which s it needs, and which its model learned."""
    out = []
    for line in main(found.growth).to_dict("records"):
        if line["lengths"] > 1:
            out.append(f"{line['series']}: {grows(line)}")
    if any(line["lengths"] < TELLING for line in main(found.growth).to_dict("records")):
        out.append(f"Laws of length need {TELLING} context lengths or more to be told apart (--context-lengths).")
    for name, (learned, needed) in found.s.items():
        told = "" if learned is None else f"; the model learned s = {learned:.3f} (mean over heads)"
        out += [] if needed is None else [f"{name}: its answers need s ln n with s = {needed:.3f}{told}."]
    return out


def in_short(found: Found) -> list[str]:
    """Say for each mechanism how many of its models need sharper attention the longer a prompt is, and what that means."""
    growth = main(found.growth)
    known = growth[growth["low"].notna() & (growth["lengths"] > 1)]
    if known.empty:
        return ["There are too few lengths or trials to say whether longer prompts need sharper attention."]
    mechanism = known["series"].map(found.mechanisms)
    parts = []
    for name in sorted(mechanism.unique(), key=lambda name: name != "softmax"):
        own = known[mechanism == name]
        parts.append(f"{(own['low'] > 0).sum()} of {len(own)} with {name}")
    return [
        f"Do longer prompts need sharper attention than the model gives them? Yes for {', '.join(parts)}.",
        "Sharper: every query of the question and the answer times a factor C. Yes means that the best C grows with the length: the 95% "
        "interval of its growth lies above 0. A mechanism that sharpens enough by itself leaves nothing to grow.",
    ]


def grows(line: dict[str, Any]) -> str:
    """Write the power of ln n with which the best factor grows, and what its interval leaves possible."""
    low, high = line["low"], line["high"]
    said = f"the factor that its answers need, on top of the model's own scale, grows as (ln n)^{line['power']:.2f}"
    if math.isnan(low):
        return f"{said} (no interval with fewer than {statistics.FEWEST} trials)."
    constant, log = (low <= power <= high for power in (0, 1))
    told = {
        (True, True): "a constant factor (power 0) fits, and so does s ln n (power 1)",
        (True, False): "a constant factor (power 0) fits, s ln n (power 1) does not",
        (False, True): "s ln n (power 1) fits, a constant factor (power 0) does not",
        (False, False): "neither a constant factor (power 0) nor s ln n (power 1) fits",
    }[constant, log]
    return f"{said} (95% interval {low:.2f} to {high:.2f}): {told}."


def s_of(rows: pd.DataFrame, laws: pd.DataFrame, context: Context) -> dict[str, tuple[float | None, float | None]]:
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
        learned = [s for layer in attention.get("learned", {}).values() for s in layer.get("s", [])]
        own = main(laws)[lambda table, name=name: table["series"] == name].set_index("law")
        mean = float(np.mean(learned)) if named == "ssmax" and learned else None
        needed = None
        if mean is not None:
            needed = mean * float(own["a"].get("a", math.nan))
        elif named == "softmax":
            needed = float(own["s"].get("s ln n", math.nan))
        out[str(name)] = (mean, needed if needed is not None and math.isfinite(needed) else None)
    return out


def section(found: Found, context: Context) -> dict[str, Any]:
    """Return what the template shows of one task."""
    figure = figures.needed_scale_figure(found.lines, found.laws, found.train_lengths)
    lengths = sorted(found.lines.loc[found.lines["control"] != "needle-only", "context_length"].unique())
    return {
        "heading": found.heading,
        "figure": context.drawn(figure, f"needed-scale-{found.number:02}"),
        "lengths": [int(n) for n in lengths],
        "tables": [(title, grid(found.lines, lengths, face)) for title, face in FACES.items()],
        "law_columns": LAW_COLUMNS,
        "laws": [
            (str(name), figures.key_of(str(name)), law_lines(lines))
            for name, lines in main(found.laws).groupby("series", sort=False)
        ],
        "words": in_words(found),
    }
