"""What the page says of the needed scale in words: whether it grows with length, and which s answers need."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ... import statistics

TELLING = 4  # context lengths
SAID = {law.name: law.said for law in statistics.LAWS}
PURE = ("1", "a", "s ln n", "a (ln n)^1/2")  # their power of ln n is the same at all lengths


@dataclass(frozen=True)
class NeededS:
    """The s that a model learned, the mean over heads, and the s that its answers need, with its 95% interval."""

    learned: float | None
    needed: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Found:
    """One task's best factors, their laws and growth, and of each series its mechanism, its model and the s that it needs."""

    number: int
    heading: str
    lines: pd.DataFrame
    laws: pd.DataFrame
    growth: pd.DataFrame
    s: dict[str, NeededS]
    mechanisms: dict[str, str]
    models: dict[str, str]
    train_lengths: dict[str, int | None]


def main(table: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of the question and answer's rows, all heads, on the grid's prompts."""
    return table[(table["scaled"] == "all") & table["control"].isna()]


def ranged(numbers: "pd.Series[int]") -> str:
    """Write numbers as one, or as the least and the most."""
    least, most = int(numbers.min()), int(numbers.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def in_words(found: Found) -> list[str]:
    """Say how the needed scale of each series grows with length, which s it needs, and which its model learned."""
    out = []
    for line in main(found.growth).to_dict("records"):
        if line["lengths"] > 1:
            out.append(f"{line['series']}: {grows(line)}")
    if any(line["lengths"] < TELLING for line in main(found.growth).to_dict("records")):
        out.append(f"Laws of length need {TELLING} context lengths or more to be told apart (--context-lengths).")
    for name, lengths in at_ends(found).items():
        out.append(
            f"{name}: at {ranged(lengths)} tokens the best C is the first or last factor that was tried, and may lie further off; how C "
            "grows, its laws and s are of that factor, as if it were the best."
        )
    for name, s in found.s.items():
        if s.needed is None:
            continue
        told = f"{s.needed:.3f}" + ("" if s.low is None else f" (95% interval {s.low:.3f} to {s.high:.3f})")
        if s.learned is None:
            out.append(f"{name}: of laws s ln n, the one nearest to what its answers need has s = {told}.")
        else:
            out.append(
                f"{name}: it learned s = {s.learned:.3f}, mean over heads; of laws s ln n, the one nearest to what its answers "
                f"need has s = {told}."
            )
    return out


def at_ends(found: Found) -> "dict[str, pd.Series[int]]":
    """Return, of each series whose best factor lies at an end of the grid somewhere, the context lengths where it does."""
    lines = main(found.lines)
    ends = lines[lines["at_an_end"].astype(bool)]
    return {str(name): part["context_length"] for name, part in ends.groupby("series", sort=False)}


def in_short(found: Found) -> list[str]:
    """Say for each mechanism how many of its models need sharper attention the longer a prompt is, and what that means."""
    growth = main(found.growth)
    known = growth[growth["low"].notna() & (growth["lengths"] > 1)]
    if known.empty:
        return ["There are too few lengths or trials to say whether longer prompts need sharper attention."]
    mechanism = known["series"].map(found.mechanisms)
    models = known["series"].map(found.models).nunique()
    # a model with two thetas is read twice
    of = f"{models} model{'s' * (models > 1)}"
    what, of = ("readings", f"{len(known)} readings of {of}") if models < len(known) else ("models", of)
    groups = [known[mechanism == name] for name in sorted(set(mechanism), key=lambda name: (name != "softmax", name))]
    yes = [
        f"{(own['direction'] > 0).sum()} of {len(own)}{'' if i else f' {what}'} with {mechanism[own.index[0]]}"
        for i, own in enumerate(groups)
    ]
    lines = main(found.lines)
    lines = lines[lines["series"].isin(known["series"])]
    lengths = lines.groupby("series")["context_length"].nunique()
    kinds = (
        (known["direction"] < 0, "The reverse, the best C falls, for {}: {}."),
        (known["direction"] == 0, "Not shown, the interval holds 0, for {}: {}."),
        (
            known["direction"].isna(),
            "The two ways disagree, the interval excludes 0 and the law that errs least at lengths left out says otherwise, for {}: {}.",
        ),
        (
            known["series"].isin(at_ends(found)),
            "The best C is the first or last factor that was tried at some lengths, so that growth may be hidden, for {}: {}.",
        ),
    )
    return [
        f"Do longer prompts need sharper attention than the model gives them? Yes for {', '.join(yes)}.",
        "Sharper: every query of the question and the answer times a factor C. Yes means that the best C grows with the length: the 95% "
        "interval of its growth lies above 0, and the law that errs least at lengths left out grows too. "
        "If a mechanism already sharpens enough, the best C stays the same at all lengths.",
        *(words.format(these.sum(), ", ".join(known.loc[these, "series"])) for these, words in kinds if these.any()),
        f"These are {of}, each read at {ranged(lengths)} lengths with {ranged(lines['prompts'])} prompts of "
        f"{ranged(lines['trials'])} trials at each.",
    ]


def grows(line: dict[str, Any]) -> str:
    """Write the power of ln n with which the best factor grows, what its interval holds, and what lengths left out say."""
    low, high = line["low"], line["high"]
    said = f"the factor that its answers need, on top of the model's own scale, goes as (ln n)^{line['power']:.2f}"
    if math.isnan(low):
        return f"{said} (no interval with fewer than {statistics.FEWEST} trials)."
    constant, log = ("within" if low <= power <= high else "outside" for power in (0, 1))
    told = (
        f"{said} (95% interval {low:.2f} to {high:.2f}): a constant factor (power 0) is {constant} the interval, a ln n (power 1) "
        f"{'too' if log == constant else f'is {log} it'}."
    )
    if pd.isna(line["law"]):
        return told
    first = f"At lengths left out C = {SAID[line['law']]} errs least (weight {line['weight']:.0%}). Its power"
    if line["law"] not in PURE:
        first += f", {line['law_power']:.2f} at these lengths,"
    return f"{told} {first} is " + (
        "within the interval: it fits."
        if line["agree"]
        else "outside the interval: the two ways disagree, no law is shown to fit."
    )
