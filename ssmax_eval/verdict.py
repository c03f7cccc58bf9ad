"""The verdict in words, for terminal and page: who finds more, from which length, by how much, how sure, and on how many prompts."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from . import statistics

LEVEL = 1 - statistics.CONFIDENCE
SAME = 0.05  # of accuracy: a difference below it is none that matters
MOST = 2000  # prompts or trials that advice goes up to
LOW = 0.5  # a short score below which it says little how far it is kept


def verdict(
    rows: pd.DataFrame,
    baseline: str,
    reach: pd.DataFrame,
    train_lengths: dict[str, int | None],
    pairs: list[statistics.Beside] | None = None,
    by_length: pd.DataFrame | None = None,
    pooled: pd.DataFrame | None = None,
) -> list[dict[str, Any]]:
    """Return for each series of one task its sentences; the baseline's own last.

    rows: with_series. reach: effective_lengths. pairs, by_length, pooled: statistics.beside of the rows, and compare of each length
    and over all; made here if they are not at hand.
    """
    pairs = statistics.beside(rows, baseline) if pairs is None else pairs
    by_length = statistics.compare(pairs, baseline, ("context_length",)) if by_length is None else by_length
    pooled = statistics.compare(pairs, baseline, ()) if pooled is None else pooled
    further = statistics.compare_reach(pairs, baseline)
    own = {line["series"]: line for line in reach.to_dict("records")}
    out = []
    for name in sorted(rows.loc[rows["control"].isna(), "series"].unique(), key=lambda name: name == baseline):
        far = how_far(own[name], train_lengths.get(name)) if name in own else "None of its prompts has a score."
        sentences = [far]
        if name != baseline and name in own:
            lines = by_length[by_length["series"] == name].to_dict("records")
            total = pooled[pooled["series"] == name].to_dict("records")
            ratio = further[further["series"] == name].to_dict("records")
            known = [own[each]["effective_length"] for each in (name, baseline) if each in own]
            by_table = known[0] / known[1] if len(known) == 2 and known[1] else math.nan
            sentences = [*against(lines, total, baseline, train_lengths.get(name)), far + times(ratio, by_table)]
        out.append({"series": name, "sentences": sentences})
    return out


def against(
    lines: list[dict[str, Any]], pooled: list[dict[str, Any]], baseline: str, train_length: int | None
) -> list[str]:
    """Say what separates a series from the baseline, lines and pooled of statistics.compare by length and over all."""
    if not lines:
        return [f"It has no scores at a length and depth at which {baseline} has some."]
    lines = sorted(lines, key=lambda line: line["context_length"])
    tested = [line["context_length"] for line in lines]
    real = [line for line in lines if line["p_holm"] < LEVEL]
    sentences = []
    for word, found in (
        ("more", [line for line in real if line["difference"] > 0]),
        ("less", [line for line in real if line["difference"] < 0]),
    ):
        if found:
            at = where([line["context_length"] for line in found], tested)
            sentences.append(f"It finds {word} than {baseline} {at}. {largest(found, train_length)}")
    total = pooled[0]
    if not real and total["p"] < LEVEL:
        word = "more" if total["difference"] > 0 else "less"
        sentences.append(
            f"At no single length is its difference from {baseline} certain, but over all lengths it finds {word}."
        )
    elif not real:
        sentences.append(untold(lines, baseline))
    if calm := [line for line in lines if line["p_holm"] >= LEVEL]:
        at = where([line["context_length"] for line in calm], tested)
        sentences.append(f"No significant difference {at}{able(calm)}.")
    sentences += at_odds(lines, tested)
    sentences.append(
        f"Over all {'lengths' if len(lines) > 1 else 'depths'}: {total['accuracy']:.2f} against {total['accuracy_baseline']:.2f}, "
        f"{interval(total)}, {prompts(total)}, p {p_text(total['p'])}. "
        f"({', '.join(dict.fromkeys(line['test'] for line in [*lines, total]))}; lengths adjusted for their number, Holm.)"
    )
    return sentences


def at_odds(lines: list[dict[str, Any]], tested: list[int]) -> list[str]:
    """Explain where an interval and a test seem to disagree: one is of a length alone, the other of all lengths."""
    off = {id(line): line["low"] > 0 or line["high"] < 0 for line in lines}
    alone = [line["context_length"] for line in lines if off[id(line)] and line["p"] < LEVEL <= line["p_holm"]]
    edge = [line["context_length"] for line in lines if off[id(line)] and line["p"] >= LEVEL]
    joint = [line["context_length"] for line in lines if not off[id(line)] and line["p_holm"] < LEVEL]
    said = []
    if alone:
        said.append(
            f"The interval leaves 0 out {where(alone, tested)}, yet the test finds no significance there: the interval is of that length "
            f"alone, the test allows for {len(lines)} lengths."
        )
    if edge:
        said.append(
            f"The interval excludes 0 {where(edge, tested)} but the test gives p of .05 or more: take it as undecided."
        )
    if joint:
        said.append(f"The test is significant {where(joint, tested)} but the interval holds 0: take it as undecided.")
    return said


def untold(lines: list[dict[str, Any]], baseline: str) -> str:
    """Say why two series are not told apart: they find about as much, or there are too few prompts, and how many would be enough."""
    line = max(lines, key=lambda line: (abs(line["difference"]), line["context_length"]))
    size, units = abs(line["difference"]), line["trials"] or line["pairs"]
    if size < SAME:
        return f"It finds about as much as {baseline} at every length."
    if not units:
        return f"There are too few prompts to say whether it differs from {baseline}."
    level, prompts = LEVEL / len(lines), line["pairs"] / units
    found = (n for n in range(2, MOST) if statistics.smallest_difference(n, level, prompts=prompts) <= size)
    enough = next(found, MOST)
    enough = max(enough, 2 * units)  # as many as there are were not enough
    how = (
        f"{enough} trials (--trials {enough})" if line["trials"] else f"{enough} prompts of that length (more --trials)"
    )
    at = f"{line['difference']:+.2f} at {line['context_length']:,} tokens"
    return (
        f"Too few prompts to say whether it differs from {baseline}: a difference as large as here, {at}, would show at best with "
        f"about {how}."
    )


def able(lines: list[dict[str, Any]]) -> str:
    """Tell what difference so many prompts could have shown, where none was significant."""
    if not all(line["shared"] for line in lines):
        return ""
    smallest = [line["smallest"] for line in lines]
    by_trial = any(line["trials"] for line in lines)
    if any(math.isnan(each) for each in smallest):
        return f", where so few {'trials' if by_trial else 'prompts or stretches of text'} can show none"
    how = (
        "at best: if every trial that differs favours the same model"
        if by_trial
        else "at best: if every prompt that differs favours the same model"
    )
    return f". With so few prompts only a difference of about {max(smallest):.2f} or more would show ({how})"


def largest(lines: list[dict[str, Any]], train_length: int | None) -> str:
    """Tell the largest of several differences."""
    line = max(lines, key=lambda line: (abs(line["difference"]), line["context_length"]))
    length = line["context_length"]
    times = f" ({length / train_length:g} times its training length)" if train_length and length > train_length else ""
    return (
        f"Most at {length:,} tokens{times}: {line['accuracy']:.2f} against {line['accuracy_baseline']:.2f}, "
        f"{interval(line)}, {prompts(line)}, p {p_text(line['p_holm'])}."
    )


def how_far(line: dict[str, Any], train_length: int | None) -> str:
    """Tell a series' effective context length."""
    score = f"{line['accuracy']:.2f} at {line['shortest']:,} tokens"
    trained = f"; trained at {train_length:,}" if train_length else ""
    if line["lengths"] == 1:
        return f"It finds {score}, the only length with scores{trained}."
    if pd.isna(line["effective_length"]):
        return f"It finds nothing at its shortest length ({score}), so nothing can be said of how far it reaches."
    low, high = (
        f"{'at least ' if line[f'{end}_beyond'] else ''}{int(line[end]):,}" if line[end] == line[end] else "nothing"
        for end in ("low", "high")
    )
    spread = "" if line["beyond"] and low == high else f" (95% interval {low} to {high})" if low != high else ""
    if 0 < line["trials"] < statistics.FEWEST:
        spread = f" ({too_few(line['trials'])})"
    reach = f"{int(line['effective_length']):,} tokens"
    longest = "the longest with scores" if line["unscored"] else "the longest tested"
    reach = f"at least {reach}, {longest}" if line["beyond"] else reach
    dips = f"; it has less at {listed(line['dips'])}" if line["dips"] else ""
    low_score = "Its short score is low, so this says little: it" if line["accuracy"] < LOW else "It"
    return f"{low_score} keeps {statistics.SHARE:.0%} of its short score ({score}{trained}) to {reach}{spread}{dips}."


def times(found: Sequence[dict[str, Any]], by_table: float) -> str:
    """Tell how many times as far as the baseline that is. by_table: what the effective lengths of all prompts of each give."""
    if not found or found[0]["bound"] == "unknown" or pd.isna(found[0]["ratio"]):
        return ""
    line = found[0]
    bound = f"{line['bound']} " if line["bound"] else ""
    low, high = line["low"], line["high"]
    ends = [f"{low:g}" if low else "", f"{high:g}" if math.isfinite(high) else ""]
    spread = {
        (True, True): f"{ends[0]} to {ends[1]}",
        (True, False): f"{ends[0]} or more",
        (False, True): f"{ends[1]} or less",
    }
    known = spread.get((bool(ends[0]), bool(ends[1])), "open on both sides")
    apart = not math.isnan(by_table) and not math.isclose(line["ratio"], by_table)
    said = "On the prompts that both have, that" if apart else "That"
    ratio = "as far" if line["ratio"] == 1 else f"{line['ratio']:g} times as far"
    return f" {said} is {bound}{ratio} as the other (95% interval {known})."


def where(found: list[int], tested: list[int]) -> str:
    """Name lengths: as a range where no tested one between them is missing."""
    if len(found) == 1:
        return f"at {found[0]:,} tokens"
    between = [length for length in tested if found[0] <= length <= found[-1]]
    return f"from {found[0]:,} to {found[-1]:,} tokens" if between == found else f"at {listed(found)} tokens"


def listed(lengths: list[int]) -> str:
    """Write numbers in a row."""
    words = [f"{length:,}" for length in lengths]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def interval(line: dict[str, Any]) -> str:
    known = f"95% interval {line['low']:+.2f} to {line['high']:+.2f}"
    if line["trials"] and (line["low"], line["high"]) == (-1, 1):
        known = too_few(line["trials"])
    return f"{line['difference']:+.2f} ({known})"


def too_few(trials: int) -> str:
    return f"no interval, {trials} trial{'s are' if trials > 1 else ' is'} too few"


def prompts(line: dict[str, Any]) -> str:
    """Tell on what two series are compared, and over how many trials where those are what is independent."""
    told = f"{line['pairs']:,} identical prompts" if line["shared"] else "other prompts for each"
    if not line["trials"]:
        return told
    paired = "" if line["shared"] else ", paired by trial,"
    return f"{told}{paired} over {line['trials']:,} trial{'s' if line['trials'] > 1 else ''}"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
