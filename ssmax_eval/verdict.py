"""The verdict in words, for terminal and page: who finds more, from which length, by how much, how sure, and on how many prompts."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from . import statistics

LEVEL = 1 - statistics.CONFIDENCE


def verdict(
    rows: pd.DataFrame, baseline: str, reach: pd.DataFrame, train_lengths: dict[str, int | None]
) -> list[dict[str, Any]]:
    """Return for each series of one task its sentences; the baseline's own last. rows: with_series, reach: effective_lengths."""
    by_length = statistics.compare(rows, baseline, ("context_length",))
    pooled = statistics.compare(rows, baseline, ())
    further = statistics.compare_reach(rows, baseline)
    own = {line["series"]: line for line in reach.to_dict("records")}
    out = []
    for name in sorted(own, key=lambda name: name == baseline):
        sentences = [how_far(own[name], train_lengths.get(name))]
        if name != baseline:
            lines = by_length[by_length["series"] == name].to_dict("records")
            total = pooled[pooled["series"] == name].to_dict("records")
            ratio = further[further["series"] == name].to_dict("records")
            sentences = [*against(lines, total, baseline, train_lengths.get(name)), sentences[0] + times(ratio)]
        out.append({"series": name, "sentences": sentences})
    return out


def against(
    lines: list[dict[str, Any]], pooled: list[dict[str, Any]], baseline: str, train_length: int | None
) -> list[str]:
    """Say what separates a series from the baseline, lines and pooled of statistics.compare by length and over all."""
    if not lines:
        return [f"It shares no length and task with {baseline}."]
    lines = sorted(lines, key=lambda line: line["context_length"])
    real = [line for line in lines if line["p_holm"] < LEVEL]
    more = [line for line in real if line["difference"] > 0]
    less = [line for line in real if line["difference"] < 0]
    test = "McNemar's exact test" if lines[0]["shared"] else "Fisher's exact test, other prompts"
    sentences = []
    for found, word in ((more, "more"), (less, "less")):
        if found:
            at = where([line["context_length"] for line in found], [line["context_length"] for line in lines])
            sentences.append(f"It finds {word} than {baseline} {at}. {largest(found, train_length)}")
    if not real:
        sentences.append(f"It cannot be told from {baseline}.")
    if calm := [line for line in lines if line["p_holm"] >= LEVEL]:
        at = where([line["context_length"] for line in calm], [line["context_length"] for line in lines])
        least = min(calm, key=lambda line: line["pairs"])
        able = f", where {least['pairs']:,} prompts can show one of {least['smallest']:.2f} or more"
        able = able if least["smallest"] == least["smallest"] else ", where so few prompts can show none"
        sentences.append(f"No difference was seen {at}{able if least['shared'] else ''}.")
    for line in pooled:
        sentences.append(
            f"Over all lengths: {line['accuracy']:.2f} against {line['accuracy_baseline']:.2f}, {interval(line)}, "
            f"{prompts(line)}. Lengths by {test}, adjusted for their number (Holm)."
        )
    return sentences


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
    if pd.isna(line["effective_length"]):
        return f"It finds nothing at its shortest length ({score}), so nothing can be said of how far it reaches."
    low, high = (
        f"{'at least ' if line[f'{end}_beyond'] else ''}{int(line[end]):,}" if line[end] == line[end] else "nothing"
        for end in ("low", "high")
    )
    spread = "" if low == high else f" (95% interval {low} to {high})"
    reach = f"{int(line['effective_length']):,} tokens"
    reach = f"at least {reach}, the longest tested" if line["beyond"] else reach
    trained = f"; trained at {train_length:,}" if train_length else ""
    return f"It keeps {statistics.SHARE:.0%} of its short score ({score}) to {reach}{spread}{trained}."


def times(found: Sequence[dict[str, Any]]) -> str:
    """Tell how many times as far as the baseline that is."""
    if not found or found[0]["bound"] == "unknown" or pd.isna(found[0]["ratio"]):
        return ""
    line = found[0]
    bound = f"{line['bound']} " if line["bound"] else ""
    return f" That is {bound}{line['ratio']:g} times as far (95% interval {line['low']:g} to {line['high']:g})."


def where(found: list[int], tested: list[int]) -> str:
    """Name lengths: as a range where no tested one between them is missing."""
    if len(found) == 1:
        return f"at {found[0]:,} tokens"
    between = [length for length in tested if found[0] <= length <= found[-1]]
    if between == found:
        return f"from {found[0]:,} to {found[-1]:,} tokens"
    return f"at {', '.join(f'{length:,}' for length in found[:-1])} and {found[-1]:,} tokens"


def interval(line: dict[str, Any]) -> str:
    return f"{line['difference']:+.2f} (95% interval {line['low']:+.2f} to {line['high']:+.2f})"


def prompts(line: dict[str, Any]) -> str:
    return f"{line['pairs']:,} identical prompts" if line["shared"] else "unlike prompts"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
