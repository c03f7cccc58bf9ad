"""The page's part on losses: one section for each text and length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, Table, records

SAID = 4  # series that the first sentence names


@dataclass(frozen=True)
class Losses:
    """The loss by position and the context gain on one text at one length; alike: statistics.same_tokens."""

    number: int
    rows: pd.DataFrame
    curve: pd.DataFrame
    gain: pd.DataFrame
    text: str
    context_length: int
    window: int
    alike: list[list[str]]


class LossByPosition(Section[Losses]):
    """Loss by position, and what the far context is worth."""

    place = 60
    lead_place = 20
    heading = "loss"

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Losses]:
        out = []
        for number, (_, part) in enumerate(statistics.tasks(rows, statistics.TEXT), 1):
            first = part.iloc[0]
            curve, gain = statistics.loss_by_position(part), statistics.context_gain(part)
            told = str(first["text"]), int(first["context_length"]), int(first["window"])
            out.append(Losses(number, part, curve, gain, *told, statistics.same_tokens(part)))
        return out

    def tables(self, found: Sequence[Losses]) -> Iterator[Table | str]:
        """Yield the loss by position and the context gain, a column for each series."""
        for each in found:
            series = each.rows["series"].unique().tolist()
            if len(each.alike) > 1:
                yield apart(each.alike)
            for table, value, title in (
                (
                    each.curve,
                    "loss",
                    f"loss by tokens in front, nats, {statistics.where_of(each.text)}, {each.context_length:,} tokens",
                ),
                (
                    each.gain,
                    "context_gain",
                    f"loss of the last {each.window:,} tokens, with all before minus alone; below 0 it helps",
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
                yield Table(title, ["from" if value == "loss" else "length", *series], lines)

    def summary(self, found: Sequence[Losses]) -> dict[str, Any]:
        return {
            "loss": records(each.curve for each in found),
            "context_gain": records(each.gain for each in found),
        }

    def lead(self, found: Sequence[Losses], context: Context) -> Markup:
        for each in sorted(found, key=lambda each: each.context_length, reverse=True):
            if said := in_short(each.curve, each.text, each.alike):
                return context.lead("Loss", [[said, apart(each.alike)] if len(each.alike) > 1 else [said]])
        return Markup("")

    def page(self, found: Sequence[Losses], context: Context) -> Markup:
        return self.rendered(context, sections=[section(each, context) for each in found])


SECTION = LossByPosition()


def in_short(curve: pd.DataFrame, text: str, alike: Sequence[Sequence[str]]) -> str:
    """Say what the tokens that stand furthest back cost under each series, the cheapest of the same tokens first; "" without losses."""
    known = curve.dropna(subset=["loss"])
    if known.empty:
        return ""
    start = int(known.groupby("series")["position_start"].max().min())
    group = {name: number for number, names in enumerate(alike) for name in names}
    far = known[known["position_start"] == start]
    far = far.assign(group=far["series"].map(group)).sort_values(["group", "loss"], kind="stable")
    parts = [
        f"{line['series']} {line['loss']:.2f}"
        + ("" if pd.isna(line["low"]) else f" (95% interval {line['low']:.2f} to {line['high']:.2f})")
        for line in far.to_dict("records")[:SAID]
    ]
    more = f", and {len(far) - SAID} more" if len(far) > SAID else ""
    better = "Less is better; " if len(alike) == 1 else ""
    return (
        f"With {start:,} tokens or more in front, a token {statistics.where_of(text)} costs, in nats: {'; '.join(parts)}{more}. "
        f"{better}{int(far['documents'].min())} documents."
    )


def apart(alike: Sequence[Sequence[str]]) -> str:
    """Say which series read other tokens than others."""
    return (
        f"Not to be compared: {' | '.join(', '.join(names) for names in alike)}. Their tokenizers make other tokens of the text, "
        "so a token of one is not as much text as a token of another."
    )


def section(found: Losses, context: Context) -> dict[str, Any]:
    """Return what the template shows of one text at one length."""
    rows, gain = found.rows, found.gain
    curve = found.curve.assign(
        low=found.curve["low"].clip(lower=0.0)
    )  # of few documents it would say that a loss can be below 0
    series = rows["series"].unique().tolist()
    figure = figures.loss_figure(curve, gain, context.train_lengths(rows))
    return {
        "heading": f"loss {statistics.where_of(found.text)}, {found.context_length:,} tokens",
        "figure": context.drawn(figure, f"loss-{found.number:02}"),
        "series": series,
        "documents": curve.groupby("series", sort=False)["documents"].max().to_dict(),
        "failed": int(curve.groupby("series")["failed"].max().sum()),
        "window": found.window,
        "apart": apart(found.alike) if len(found.alike) > 1 else "",
        "positions": lined(curve, "loss", ["position_start", "position_end"], series),
        "gains": lined(gain, "context_gain", ["position_end"], series),
    }


def interval(line: dict[str, Any] | None, value: str) -> str:
    if line is None or pd.isna(line[value]):
        return "" if line is None else "failed"
    return f"{line[value]:.3f}" + ("" if pd.isna(line["low"]) else f" ± {line['high'] - line[value]:.3f}")


def lined(table: pd.DataFrame, value: str, by: list[str], series: list[str]) -> list[dict[str, Any]]:
    """Return the lines of a table: what it is by, and (value, low, high) of each series, None where there is none."""
    out = []
    for key, part in table.groupby(by):
        at = {line["series"]: line for line in part.to_dict("records")}
        cells = [triple(at[name], value) if name in at else None for name in series]
        out.append({"at": [int(each) for each in key], "cells": cells})
    return out


def triple(line: dict[str, Any], value: str) -> tuple[float, float | None, float | None] | None:
    """Return a value with its interval, None where it is missing."""
    found = [None if pd.isna(line[name]) else float(line[name]) for name in (value, "low", "high")]
    return None if found[0] is None else (found[0], found[1], found[2])
