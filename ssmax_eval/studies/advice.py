"""Advice in words, tables, a page and JSON."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
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
from .advise import AS_TRAINED, Advice, advise
from .asked import Asked
from .held_out import (
    advised,
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
            yield Table("the race: prompts found, by length", *race_lines(each))

    def summary(self, found: Sequence[Advice]) -> dict[str, Any]:
        return {
            "advice": [
                {
                    "model": each.model,
                    "helps": helps(each),
                    "loses_at_trained_lengths": loses(each),
                    "setting": str(each.setting),
                    "options": options_of(each.setting),
                    "by_length": [
                        {
                            "context_length": length,
                            "setting": str(setting := advised(each, length)),
                            "options": options_of(setting),
                            "taken_by_race": str(taken),
                        }
                        for length, taken in each.settings.items()
                    ],
                    "in_words": [*sentences(each)],
                    "held_out": records([checks(each)]),
                    "train_length": each.train_length,
                    "gain": records([gains(each)]),
                    "at_trained_lengths": records([at_trained_lengths(each)]),
                    "price": records([each.price]),
                    "race": records([each.race]),
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
    yield from prices(advice)
    choosing, checking, whole = (advice.tokens[name] for name in ("choosing", "checking", "the whole list"))
    yield (
        f"{len(advice.series)} settings were tried. {choosing:,} tokens were read to choose, {checking:,} to check: "
        f"{(choosing + checking) / whole:.0%} of what a whole grid of each would take."
    )
    for setting, why in advice.refused.items():
        # of a refusal "what: why; what to do", the why
        reason = why.removeprefix(f"rope scaling {setting}: ").partition(";")[0]
        yield f"{setting} could not be tried: {reason}."


def prices(advice: Advice) -> Iterator[str]:
    """Yield what each setting advised costs at the shortest length."""
    shortest = min(advice.settings)
    for cost in advice.price.to_dict("records"):
        same = f"the loss of {cost['documents']} documents is the same"
        setting = next(each for each, name in advice.series.items() if name == cost["series"])
        told = f"At {shortest:,} tokens {'it' if advice.name == cost['series'] else options_of(setting)} costs"
        if not any(cost[name] for name in ("nats", "low", "high")):  # to the last bit: nothing was computed otherwise
            yield f"{told} nothing, by construction: it changes nothing at that length, {same}."
            continue
        there = "" if settings_told(advice)[shortest] == setting else " It is not advised there."
        if not any(round(cost[name], 3) for name in ("nats", "low", "high")):
            yield f"{told} nothing that shows: {same} to 0.001 nats a token.{there}"
            continue
        yield (
            f"{told} {nats(cost['nats'])} nats a token ({nats(cost['low'])} to {nats(cost['high'])}, "
            f"{cost['documents']} documents).{there}"
        )


def settings_told(advice: Advice) -> Mapping[int, Setting]:
    """Return the settings advised, or, where none is shown to help, those that the race took."""
    return {length: advised(advice, length) for length in advice.settings} if helps(advice) else advice.settings


def how(advice: Advice) -> str:
    """Say what to read texts with, up to which length."""
    settings = settings_told(advice)
    parts = [(setting, max(lengths)) for setting, lengths in groupby(settings, settings.__getitem__)]
    told = ["as it was trained" if setting == AS_TRAINED else f"with {options_of(setting)}" for setting, _ in parts]
    if len(parts) == 1:
        return told[0]
    first = [f"{what} up to {length:,} tokens" for what, (_, length) in zip(told[:-1], parts, strict=False)]
    return f"{', '.join(first)}, {told[-1]} beyond"


def verdict(advice: Advice) -> Iterator[str]:
    """Yield what to read the model with, and how far it then reaches."""
    if advice.setting == AS_TRAINED:
        yield f"Nothing helps: read {advice.model} as it was trained."
        longest = int(advice.race["context_length"].max())
        race = advice.race[advice.race["context_length"] == longest].set_index("series")
        others = race.drop(advice.own, errors="ignore")
        others = others[others["prompts"] == others["prompts"].max()]  # those that were not left behind after a few
        if others["right"].any() and advice.own in race.index:
            best, own = race.loc[others["right"].idxmax()], race.loc[advice.own]
            yield (
                f"At {longest:,} tokens {best.name} found most of the others, {of_prompts(best)} prompts, as trained {of_prompts(own)}."
            )
        return
    lines, length = gains(advice), decisive(advice)
    where = beyond_words(length)
    names = {check_of(part.iloc[0]): name for _, name, part in by_task(advice.held_out)}
    decided = deciding(lines, advice)
    if decided.empty:
        yield (
            f"No setting is shown to help: read {advice.model} as it was trained. No held-out prompt has a score both so and "
            f"{how(advice)}, as the race chose."
        )
        return
    line = decided.iloc[0]
    told = (
        f"{where} it finds {line['accuracy']:.0%} of what is asked for, as trained {line['accuracy_baseline']:.0%} (difference "
        f"{gain(line)}, on {line['pairs']} held-out prompts of task {names[line['check']]})."
    )
    if helps(advice):
        yield f"Read {advice.model} {how(advice)}: {told}"
    else:
        yield (
            f"No setting is shown to help: read {advice.model} as it was trained. Read {how(advice)}, as the race chose, "
            f"{told}{ceiling(line, advice)}"
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


def of_prompts(line: "pd.Series[Any]") -> str:
    """Write how many of its prompts a line of the race found."""
    return f"{line['right']:.0f} of {line['prompts']:.0f}"  # a line of several kinds is of floats


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
    race, lengths = advice.race, [*advice.settings]
    cells = {
        (line["series"], line["context_length"]): of_prompts(line)
        + (", taken" if advice.series[advice.settings[line["context_length"]]] == line["series"] else "")
        for _, line in race.iterrows()
    }
    best = race.groupby("series")["accuracy"].mean().sort_values(ascending=False, kind="stable").index
    return (
        ["setting", *(f"{length:,}" for length in lengths)],
        [[name, *(cells.get((name, length), "") for length in lengths)] for name in best],
    )
