"""Advice in words, tables, a page and JSON."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from .. import statistics
from ..models.subjects import RunOptions
from ..report import Findings, context_of, found_in
from ..report import written as write_page
from ..report.context import Context
from ..report.context import signed as sign
from ..report.section import Found, Section, Table, by_task, records
from ..setting import Setting
from .advise import AS_TRAINED, Advice, Asked, advise
from .held_out import (
    at_trained_lengths,
    beyond_words,
    check_of,
    checks,
    compared,
    deciding,
    decisive,
    gains,
    helps,
    loses,
)


class AdviceSection(Section[Advice]):
    """Which setting to read a model with, and how sure that is."""

    heading = "advice"

    def tables(self, found: Sequence[Advice]) -> Iterator[Table | str]:
        """Yield the advice, what it rests on, and what the race saw."""
        for each in found:
            yield from sentences(each)
            yield Table("on held-out prompts: share found", *check_lines(each))
            yield Table("the race: share found, mean over lengths", *race_lines(each))

    def summary(self, found: Sequence[Advice]) -> dict[str, Any]:
        return {
            "advice": [
                {
                    "model": each.model,
                    "helps": helps(each),
                    "loses_at_trained_lengths": loses(each),
                    "setting": str(each.setting),
                    "options": options_of(each.setting),
                    "in_words": [*sentences(each)],
                    "held_out": records([checks(each)]),
                    "train_length": each.train_length,
                    "gain": records([gains(each)]),
                    "at_trained_lengths": records([at_trained_lengths(each)]),
                    "price": records([each.price]),
                    "race": records([table.assign(round=i) for i, table in enumerate(each.race, 1)]),
                    "refused": {str(setting): why for setting, why in each.refused.items()},
                    "tokens": dict(each.tokens),
                }
                for each in found
            ]
        }

    def lead(self, found: Sequence[Advice], context: Context) -> Markup:
        return context.lead("Advice", [[*sentences(each)] for each in found])

    def page(self, found: Sequence[Advice], context: Context) -> Markup:
        parts = [[table for table in self.tables([each]) if isinstance(table, Table)] for each in found]
        return self.rendered(context, parts=parts)


NEARLY_ALL = 0.95  # of prompts found as trained
SECTION = AdviceSection()


def written(
    asked: Asked, options: RunOptions, out: Path, figures_folder: Path | None = None
) -> tuple[Findings, Path, Advice]:
    """Advise on a model, write the page, and return what was found, the page's path and the advice. Raises UserError."""
    advice = advise(asked, options)
    context = context_of(advice.runs, figures_folder, advice.own)
    shown = found_in(advice.runs, context)
    first = Found(SECTION, [advice])
    page = write_page(out, f"Advice on {advice.model}", replace(shown, found=[first, *shown.found]), context)
    return Findings([first], shown.names, shown.failed), page, advice


def options_of(setting: Setting) -> str:
    """Return a setting as options of the command line."""
    rope = setting.position.rope
    parts = [f"--attention {setting.attention}"] if setting.attention else []
    parts += [f"--rope-theta-factor {rope.theta_factor:g}"] if rope.theta_factor != 1 else []
    parts += [f"--rope-scaling {rope.scaling}"] if rope.scaling else []
    return " ".join(parts)


def sentences(advice: Advice) -> Iterator[str]:
    """Yield the advice in words, the line to act on first."""
    yield from verdict(advice)
    yield from passed_over(advice)
    shortest = int(advice.held_out["context_length"].min())
    for cost in advice.price.to_dict("records"):
        same = f"the loss of {cost['documents']} documents is the same"
        if not any(cost[name] for name in ("nats", "low", "high")):  # to the last bit: nothing was computed otherwise
            yield f"At {shortest:,} tokens it costs nothing, by construction: it changes nothing at that length, {same}."
            continue
        if not any(round(cost[name], 3) for name in ("nats", "low", "high")):
            yield f"At {shortest:,} tokens it costs nothing that shows: {same} to 0.001 nats a token."
            continue
        yield (
            f"At {shortest:,} tokens it costs {nats(cost['nats'])} nats a token ({nats(cost['low'])} to {nats(cost['high'])}, "
            f"{cost['documents']} documents)."
        )
    choosing, checking, whole = (advice.tokens[name] for name in ("choosing", "checking", "the whole list"))
    yield (
        f"{len(advice.series)} settings were tried. {choosing:,} tokens were read to choose, {checking:,} to check: "
        f"{(choosing + checking) / whole:.0%} of what a whole grid of each would take."
    )
    for setting, why in advice.refused.items():
        # of a refusal "what: why; what to do", the why
        reason = why.removeprefix(f"rope scaling {setting}: ").partition(";")[0]
        yield f"{setting} could not be tried: {reason}."


def verdict(advice: Advice) -> Iterator[str]:
    """Yield what to read the model with, and how far it then reaches."""
    if advice.setting == AS_TRAINED:
        best = advice.race[-1].set_index("series")["accuracy"]
        rivals = best.drop(advice.own)
        yield f"Nothing helps: read {advice.model} as it was trained."
        if rivals.max() > 0:  # there may be none
            yield f"Of the others {rivals.idxmax()} found most: {rivals.max():.2f} against {best[advice.own]:.2f}."
        return
    lines, length = gains(advice), decisive(advice)
    where = beyond_words(length)
    names = {check_of(part.iloc[0]): name for _, name, part in by_task(advice.held_out)}
    decided = deciding(lines, advice)
    if decided.empty:
        yield (
            f"No setting is shown to help: read {advice.model} as it was trained. No held-out prompt has a score both as trained and with "
            f"{options_of(advice.setting)}, the choice of the race."
        )
        return
    line = decided.iloc[0]
    told = (
        f"{where} it finds {line['accuracy']:.0%} of what is asked for, as trained {line['accuracy_baseline']:.0%} (difference "
        f"{gain(line)}, on {line['pairs']} held-out prompts of task {names[line['check']]})."
    )
    if helps(advice):
        yield f"Read {advice.model} with {options_of(advice.setting)}: {told}"
    else:
        yield (
            f"No setting is shown to help: read {advice.model} as it was trained. With {options_of(advice.setting)}, the choice "
            f"of the race, {told}{ceiling(line, advice)}"
        )
    for short in deciding(at_trained_lengths(advice), advice).to_dict("records"):
        yield (
            f"Up to {length:,} tokens it finds {short['accuracy']:.0%}, as trained {short['accuracy_baseline']:.0%} ({gain(short)}, "
            f"{shown(short, 'loss')}).{' Read shorter texts as it was trained.' if helps(advice) and loses(advice) else ''}"
        )
    reach = statistics.effective_lengths(advice.held_out).drop_duplicates("series").set_index("series")
    yield f"On that task {kept(reach.loc[advice.name])}, as trained {kept(reach.loc[advice.own], '')}."
    if others := [
        f"{names[other['check']]}: {gain(other)}, {shown(other, 'gain')}"
        for other in lines.drop(index=line.name).to_dict("records")
    ]:
        yield f"The difference elsewhere, {where}: {'; '.join(others)}."


def passed_over(advice: Advice) -> Iterator[str]:
    """Yield which setting the race ranked first, where another is taken, and why."""
    last = advice.race[-1].set_index("series")
    first, taken = last.iloc[0], last.loc[advice.name]
    if advice.setting == AS_TRAINED or first.name == taken.name:
        return
    if first["lost"] > taken["lost"] + 1e-9:
        yield (
            f"{first.name} came first in the race and is not taken: at one length it finds {first['lost']:.2f} less than the best there, "
            f"{taken.name} nowhere more than {taken['lost']:.2f}."
        )
        return
    reason = "no loss of it could be read"
    if not math.isnan(first["nats"]):
        reason = f"its loss is higher at short length ({sign(first['nats'])} nats a token against as trained, {sign(taken['nats'])})"
    yield (
        f"{first.name} came first in the race and is not taken: where each of them is weakest, {taken.name} finds as much, and {reason}."
    )


def nats(number: float) -> str:
    return f"{round(number, 3) + 0:+.3f}"  # a negative zero is none


def gain(line: "pd.Series[Any] | dict[str, Any]") -> str:
    """Write a difference with its interval."""
    return f"{sign(line['difference'])}, 95% interval {sign(line['low'])} to {sign(line['high'])}"


def shown(line: dict[str, Any], asked: str) -> str:
    """Say what a difference's interval leaves possible where a gain or a loss is asked about, and of how many prompts it is."""
    what = "more is found" if line["low"] > 0 else "less is found" if line["high"] < 0 else f"no {asked} is shown"
    return f"{line['pairs']} prompts, {what}"


def ceiling(line: "pd.Series[Any]", advice: Advice) -> str:
    """Say what would show a gain: other text, longer prompts where nearly all is found, else more of them."""
    if line["high"] < 0:
        return " It finds less."
    if 0 < line["trials"] < statistics.FEWEST:
        return f" Its prompts read overlapping text, so that they count as {line['trials']}: give a longer --haystack."
    if line["accuracy_baseline"] > NEARLY_ALL:
        longest = max(compared(advice))
        return f" There is little to gain up to {longest:,} tokens: ask for longer --context-lengths."
    return " More --trials would tell smaller gains."


def kept(line: "pd.Series[Any]", keeps: str = "it keeps 85% of its short score") -> str:
    """Say how far a series reads, with what bounds its effective length."""
    if math.isnan(line["effective_length"]):
        return "it finds nothing at the shortest length"
    return f"{keeps} to {'at least ' if line['beyond'] else ''}{line['effective_length']:,.0f} tokens".strip()


def check_lines(advice: Advice) -> tuple[list[str], list[list[str]]]:
    table = checks(advice)
    lengths = sorted(table["context_length"].unique())
    wide = table.pivot_table(index=["check", "series"], columns="context_length", values="accuracy", sort=False)
    length = decisive(advice)
    differences = {f"beyond {length:,}" if length else "over all": gains(advice)}
    if length and not (trained := at_trained_lengths(advice)).empty:
        differences[f"up to {length:,}"] = trained
    lines = []
    for (check, series), line in wide.iterrows():
        shares = ["" if math.isnan(line[each]) else f"{line[each]:.2f}" for each in lengths]
        found = [difference(each, check) if series != advice.own else "" for each in differences.values()]
        lines.append([check, series, *shares, *found])
    heads = [f"{where}, against as trained [95%]" for where in differences]
    return ["prompts", "setting", *(f"{length:,}" for length in lengths), *heads], lines


def difference(table: pd.DataFrame, check: str) -> str:
    """Write a check's difference with its interval, nothing where it has none."""
    found = table[table["check"] == check].to_dict("records")
    return "".join(f"{line['difference']:+.2f} [{line['low']:+.2f}, {line['high']:+.2f}]" for line in found)


def race_lines(advice: Advice) -> tuple[list[str], list[list[str]]]:
    columns = [
        "round",
        "setting",
        "prompts",
        "share found",
        "probability of the answer",
        "largest drop at any length, below the best",
        "nats a token more than as trained, at short length",
    ]
    return columns, [
        [
            str(number),
            line["series"],
            str(line["prompts"]),
            *("–" if math.isnan(line[name]) else f"{line[name]:.2f}" for name in ("accuracy", "probability", "lost")),
            "" if math.isnan(line.get("nats", math.nan)) else sign(line["nats"]),
        ]
        for number, table in enumerate(advice.race, 1)
        for line in table.to_dict("records")
    ]
