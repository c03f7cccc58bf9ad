"""What the league says in words: who reaches how far, who may reach as far, and who finds more than the baselines."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import statistics
from .league import BASELINES
from .standings import Standings


def sentences(found: Standings) -> Iterator[str]:
    """Yield what the league says, in words; the first sentence says who reaches how far."""
    lines = found.table.to_dict("records")
    learned = [line for line in lines if line["learned"]]
    seeds = "1 training seed" if found.seeds == 1 else f"{found.seeds} training seeds"
    yield first_of(learned, found)
    yield (
        f"{mechanisms_of(found)}, {seeds} of each, all trained on the same batches. At each length every model answers "
        f"{found.prompts} prompts. How far a model reaches: the longest tested length at which it finds 85% of what it finds at "
        f"{found.train_length:,} tokens, the length it was trained at; of several seeds, the geometric mean.{beside(learned)}"
    )
    for baseline in BASELINES:
        known = [line for line in lines if not math.isnan(line[f"vs {baseline} low"])]
        if not known:
            continue
        above = [line["configuration"] for line in known if line[f"vs {baseline} low"] > 0]
        below = [line["configuration"] for line in known if line[f"vs {baseline} high"] < 0]
        others = len(known) - len(above) - len(below)
        parts = [
            f"{len(each)} find {word} ({', '.join(each)})" for word, each in (("more", above), ("less", below)) if each
        ]
        parts += [f"for {others} the 95% interval of the difference holds 0"] if others else []
        yield f"Compared with {baseline} on the same prompts, over all lengths: {'; '.join(parts)}."
    yield "Each of these intervals is 95% by itself: of so many, some exclude 0 by chance."
    if found.seeds == 1:
        yield "One seed gives no interval over seeds: another seed can change any place."
    if unlearned := [line["configuration"] for line in lines if not line["learned"]]:
        yield (
            f"Last, whatever their reach, stand those that find less than {statistics.LEARNED:.0%} at the training length itself: "
            f"{', '.join(unlearned)}."
        )
    longest = max(line["longest"] for line in lines)
    for line in lines:
        if line["scored"] < longest:
            yield (
                f"{line['configuration']} has no score beyond {line['scored']:,} tokens, others have to {longest:,.0f}: how far it "
                "reaches beyond is not known, and no mean over all lengths is told of it."
            )
    for name, reach in found.reach.items():
        yield f"{name} cannot carry anything further than {reach:,} tokens: so far its windows reach, all layers together."
    for name, reason in found.failed.items():
        yield f"{name} is left out: {reason}."
    if not math.isnan(found.concordance):
        yield (
            f"Do the seeds rank the mechanisms alike? Kendall's W = {found.concordance:.2f} (1: all alike, 0: nothing in common), by "
            "accuracy over all lengths."
        )


def first_of(learned: Sequence[Mapping[str, Any]], found: Standings) -> str:
    """Say which lines reach furthest, and how far softmax does: all that hold to the longest length, or else the first."""
    if not learned:
        return "None of them learned the task."
    longest = max(line["longest"] for line in found.table.to_dict("records"))
    to_the_end = [line for line in learned if line["beyond"] == line["seeds"] and line["scored"] == longest]
    first = to_the_end or [line for line in learned if tokens(line) == tokens(learned[0])]
    names = listed([line["configuration"] for line in first])
    reach, they, find, were = (
        ("reaches", "it", "finds", "was") if len(first) == 1 else ("reach", "they", "find", "were")
    )
    on = f"on the mean over {found.seeds} seeds " if found.seeds > 1 else ""
    said = (
        f"Of {mechanisms_of(found)}, {names} {reach} furthest: {on}{they} still {find} 85% of the numbers {they} {find} at "
        f"{found.train_length:,} tokens in prompts {times(first, found)} times as long as {they} {were} trained on{seeds_of(first, found)}"
    )
    softmax = next((line for line in learned if line["configuration"] == "softmax"), None)
    if softmax is not None and softmax not in first:
        said += f"; softmax {times([softmax], found)} times{seeds_of([softmax], found)}"
    near = rivals(learned)
    return said + (
        f". By the differences seed by seed {len(near)} other{'s' * (len(near) > 1)} may reach as far." if near else "."
    )


def mechanisms_of(found: Standings) -> str:
    """Say how many mechanisms there are, and how many of them stand in several lines, trained with several positions."""
    lines = Counter(found.entries[name].attention for name in found.table["configuration"])
    twice = sum(count > 1 for count in lines.values())
    return f"{len(lines)} attention mechanisms" + (f" ({twice} of them with two positions)" if twice else "")


def times(lines: Sequence[Mapping[str, Any]], found: Standings) -> str:
    """Write how far lines of one place reach, the mean over seeds, in multiples of the training length."""
    return f"{'at least ' if lines[0]['beyond'] else ''}{lines[0]['effective_length'] / found.train_length:.2g}"


def seeds_of(lines: Sequence[Mapping[str, Any]], found: Standings) -> str:
    """Write the worst and the best seed of lines, in multiples of the training length; nothing of one seed."""
    if found.seeds == 1:
        return ""
    if all(line["beyond"] == line["seeds"] for line in lines):
        return " (every seed)"
    least, most = min(line["least"] for line in lines), max(line["most"] for line in lines)
    at_least = "at least " if any(line["beyond"] and line["most"] == most for line in lines) else ""
    return f" (single seeds: {least / found.train_length:.3g} to {at_least}{most / found.train_length:.3g})"


def listed(names: Sequence[str]) -> str:
    """Write names in a row."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def rivals(learned: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return those that reach less far, but not surely: the interval of the difference from the first, seed by seed, holds 0."""
    return [line["configuration"] for line in learned if line["behind"] > 0 >= line["behind low"]]


def beside(learned: Sequence[Mapping[str, Any]]) -> str:
    """Name the rivals of the first."""
    near = rivals(learned)
    return (
        f" These may reach as far: {', '.join(near)}. Their reach and that of {learned[0]['configuration']} are compared seed by seed, "
        "in doublings of length; the 95% interval of the difference holds 0."
        if near
        else ""
    )


def tokens(line: Mapping[str, Any]) -> str:
    """Write an effective length, with a sign where it is a bound; none of what did not learn the task."""
    if not line["learned"]:
        return "–"
    return f"{'≥ ' if line['beyond'] else ''}{line['effective_length']:,.0f}"
