"""The page's part on attention given back: which axis repairs what failed, and which breaks what did not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, Table, by_task, records
from ..axes import AXES, NOTHING, SAID, TOGETHER

NAMED = 8  # heads of an axis that are named
RULE = f"95% interval of the share, none where fewer than {statistics.FEWEST} trials have several prompts each"


@dataclass(frozen=True)
class Restored:
    """One task's verdicts with attention given back and taken away, pooled too, and by series the length and heads that they rest on."""

    number: int
    heading: str
    lines: pd.DataFrame
    pooled: pd.DataFrame
    lengths: dict[str, int]
    heads: dict[str, dict[str, list[list[float]]]]


class Given(Section[Restored]):
    """What attention given back repairs, and what attention taken away breaks."""

    place = 30
    lead_place = 5

    def lead(self, found: Sequence[Restored], context: Context) -> Markup:
        parts = [said for each in found if (said := in_short(each.pooled))]
        return context.lead("Attention given back", parts) if parts else Markup("")

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Restored]:
        out = []
        for number, heading, part in by_task(rows):
            lines = statistics.restored(part)
            if lines.empty:
                continue
            first = part[part["restored"].notna()].drop_duplicates("series").set_index("series")
            lengths = {str(name): int(length) for name, length in first["restored_length"].items()}
            heads = {str(name): heads for name, heads in first["restored_heads"].items()}
            out.append(Restored(number, heading, lines, statistics.restored(part, ()), lengths, heads))
        return out

    def tables(self, found: Sequence[Restored]) -> Iterator[Table | str]:
        """Yield what each axis repairs and breaks, by length."""
        for each in found:
            for title, columns, lines in shown(each):
                yield Table(title, ["series", *columns], lines)

    def summary(self, found: Sequence[Restored]) -> dict[str, Any]:
        return {
            "restored": records(each.lines for each in found),
            "restored_heads": [
                {"series": name, "length": each.lengths[name], "axis": axis, "heads": heads}
                for each in found
                for name, by_axis in each.heads.items()
                for axis, heads in by_axis.items()
            ],
        }

    def page(self, found: Sequence[Restored], context: Context) -> Markup:
        return self.rendered(context, sections=[section(each, context) for each in found])


SECTION = Given()


def in_short(pooled: pd.DataFrame) -> list[str]:
    """Say what attention given back repairs and breaks, beside its controls, and which share of attention repairs most alone."""
    given = pooled[pooled["done"] == "given"]
    failed, right = (given[given["was"] == was].set_index("axis") for was in ("wrong", "right"))
    if TOGETHER not in failed.index:
        return []
    whole = failed.loc[TOGETHER]
    said = (
        f"When we give each head back the attention it has in short prompts, {whole['turned']} of {whole['prompts']} failed "
        f"prompts are answered{interval(whole)}."
    )
    if not pd.isna(whole["others_turned"]):
        said += f" Given to as many other heads: {whole['others_turned']:.0f}."
    if NOTHING in failed.index:
        said += f" Changing nothing: {failed.loc[NOTHING, 'turned']}."
    single = failed.loc[[axis.name for axis in AXES if axis.name in failed.index]]
    return [said, *broken(right), *([alone(single)] if len(single) else [])]


def broken(right: pd.DataFrame) -> list[str]:
    """Say how many right answers the same breaks, and what that means for the control."""
    if TOGETHER not in right.index:
        return []
    line = right.loc[TOGETHER]
    said = f"Of {line['prompts']} prompts that were right, it breaks {line['turned']}"
    others = line["others_turned"]
    if pd.isna(others):
        return [f"{said}."]
    said += f"; given to as many other heads, it breaks {others:.0f}."
    if line["others_low"] > line["high"]:
        said += (
            " So this control does harm of its own: that it repairs few does not show that no other heads could. "
            "Changing nothing is the control without harm."
        )
    return [said]


def alone(single: pd.DataFrame) -> str:
    """Say which share of attention repairs most when it alone is given back."""
    best = single.index[int(single["share"].argmax())]
    line = single.loc[best]
    others = "" if pd.isna(line["others_turned"]) else f" Given to as many other heads: {line['others_turned']:.0f}."
    return (
        f"Of single kinds of attention, that {SAID[best]} repairs most: {line['turned']} of {line['prompts']}"
        f"{interval(line)}.{others}"
    )


def interval(line: "pd.Series[Any]") -> str:
    """Write the interval of a share, where there is one."""
    over = " over trials" if line["plan"] == statistics.BY_TRIAL else ""
    return f" (95% interval{over} {line['low']:.0%} to {line['high']:.0%})" if has_interval(line) else ""


def has_interval(line: "pd.Series[Any] | dict[str, Any]") -> bool:
    """Tell whether a line has an interval: several prompts of too few trials have none, which is 0 to 1."""
    return (line["low"], line["high"]) != (0, 1)


def section(found: Restored, context: Context) -> dict[str, Any]:
    """Return what the template shows of one task."""
    failed = (found.lines["was"] == "wrong").any()
    figure = figures.restored_figure(found.lines, SAID) if failed else None
    return {
        "heading": found.heading,
        "figure": context.drawn(figure, f"restored-{found.number:02}") if figure else None,
        "tables": shown(found),
        "lengths": found.lengths,
        "heads": {name: held(by_axis) for name, by_axis in found.heads.items()},
    }


def shown(found: Restored) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return the tables as text: title, columns after the series, lines that begin with it."""
    out = []
    for done, was, title in (
        (
            "given",
            "wrong",
            f"Prompts repaired of those that failed: attention given back; {RULE} (in brackets: to as many other heads)",
        ),
        (
            "given",
            "right",
            f"Prompts broken of those that were right: attention given back; {RULE} (in brackets: to as many other heads)",
        ),
        (
            "taken",
            "right",
            f"Prompts broken of those that were right: attention taken away; {RULE} (in brackets: from as many other heads)",
        ),
    ):
        part = found.lines[(found.lines["done"] == done) & (found.lines["was"] == was)]
        lengths = sorted(part["context_length"].unique())
        lines = []
        for name, own in part.groupby("series", sort=False):
            cells = {(line["axis"], line["context_length"]): cell(line) for line in own.to_dict("records")}
            axes = [axis for axis in SAID if axis in set(own["axis"])]
            lines += [[str(name), SAID[axis], *(cells.get((axis, n), "") for n in lengths)] for axis in axes]
        if lines:
            out.append((title, ["attention", *(f"{n:,}" for n in lengths)], lines))
    return out


def cell(line: dict[str, Any]) -> str:
    """Write how many of how many, the share's interval, and of how many it is with other heads."""
    text = f"{line['turned']} of {line['prompts']}"
    text += f", {line['low']:.2f}–{line['high']:.2f}" if has_interval(line) else ""
    return text if pd.isna(line["others_turned"]) else f"{text} ({int(line['others_turned'])})"


def held(by_axis: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Return for each axis its heads in words, and their mean masses at the length given back and at the longest."""
    out = []
    for axis in AXES:
        heads = by_axis.get(axis.name, [])
        named = ", ".join(f"{int(layer)}.{int(head)}" for layer, head, *_ in heads[:NAMED])
        more = f" and {len(heads) - NAMED} more" if len(heads) > NAMED else ""
        masses = [sum(each) / len(heads) for each in list(zip(*heads, strict=True))[2:]] if heads else []
        out.append({"said": axis.said, "heads": (named or "none") + more, "masses": masses})
    return out
