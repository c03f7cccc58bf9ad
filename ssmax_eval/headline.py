"""The headline of a needle page: one sentence without statistics, of the models or of what their training seeds have in common."""

import numpy as np
import pandas as pd

from .verdict import LEVEL


def headline(
    means: pd.DataFrame,
    by_length: pd.DataFrame,
    pooled: pd.DataFrame,
    baseline: str,
    train_lengths: dict[str, int | None],
    things: str,
) -> str:
    """Return one sentence without statistics: what the series that differ most find, out of how many, and at what length.

    means, by_length, pooled: statistics.lengths, and compare of each length and over all. things: what is hidden, in the plural.
    """
    known = means[means["scored"] > 0]
    if known.empty:
        return "No prompt has a score."
    names = [*known["series"].unique()]
    if known["accuracy"].max() == 0:
        each = int(known.groupby("series")["scored"].sum().max())
        who = f"{names[0]} finds none" if len(names) == 1 else f"None of the {len(names)} models finds any"
        return f"{who} of the {each} {things}, at any length."

    def finds(name: str, length: int) -> str:
        line = known[(known["series"] == name) & (known["context_length"] == length)].iloc[0]
        return f"{round(line['accuracy'] * line['scored'])} of {line['scored']}"

    if len(names) == 1 or by_length.empty:
        own = known[known["series"] == names[0]]
        short, long = int(own["context_length"].min()), int(own["context_length"].max())
        said = f"{names[0]} finds {finds(names[0], short)} {things} {prompts_of(short, train_lengths.get(names[0]))}"
        return said + (
            "." if long == short else f", and {finds(names[0], long)} {prompts_of(long, train_lengths.get(names[0]))}."
        )
    real = by_length[by_length["p_holm"] < LEVEL]
    if not len(real) and len(over_all := pooled[(pooled["p"] < LEVEL) & (pooled["pairs"] > 0)]):
        line = over_all.loc[over_all["difference"].abs().idxmax()]
        counts = [(line["series"], line["accuracy"]), (baseline, line["accuracy_baseline"])]
        (first, most), (second, least) = sorted(counts, key=lambda each: -each[1])
        pairs, own = int(line["pairs"]), by_length.loc[by_length["series"] == line["series"], "context_length"]
        lengths = (
            f"From {int(own.min()):,} to {int(own.max()):,} tokens"
            if len(own) > 1
            else f"At {int(own.iloc[0]):,} tokens"
        )
        return (
            f"{lengths} {first} finds {round(most * pairs)} of {pairs} {things}; {second} finds {round(least * pairs)}."
        )
    table = real if len(real) else by_length
    # what is sure: the largest difference; else, of the longest length, where the largest may be luck
    keys = ["size", "context_length"] if len(real) else ["context_length", "size"]
    line = table.assign(size=table["difference"].abs()).sort_values(keys, kind="stable").iloc[-1]
    length, more = int(line["context_length"]), [line["series"], baseline]
    first, second = more if line["difference"] >= 0 else more[::-1]
    where_ = prompts_of(length, train_lengths.get(first))
    if len(real):
        most = "" if length == by_length["context_length"].max() else "Where they differ most, "
        return f"{most}{first} finds {finds(first, length)} {things} {where_}; {second} finds {finds(second, length)}."
    if finds(first, length) == finds(second, length):
        if (others := int((by_length["context_length"] == length).sum())) > 1:
            return f"All {others + 1} find the same share: {first} {finds(first, length)} {things} {where_}."
        return f"{first} and {second} find the same: {finds(first, length)} {things} {where_}."
    return (
        f"There are too few prompts to say which finds more: {first} finds {finds(first, length)} {things} {where_}, {second} finds "
        f"{finds(second, length)}."
    )


def seeds_headline(compared: pd.DataFrame, baseline: str, train_length: int | None, things: str) -> str:
    """Return one sentence on what configurations find, the mean over training seeds; "" where none has two seeds in common with another.

    compared: statistics.compare_seeds of one task. things: what is hidden, in the plural.
    """
    known = compared[compared["seeds"] > 1]
    if known.empty:
        return ""
    apart = known[(known["low"] > 0) | (known["high"] < 0)]
    order = (apart if len(apart) else known).assign(size=known["difference"].abs())
    line = order.sort_values(["size", "context_length"], kind="stable").iloc[-1]
    at = known[known["context_length"] == line["context_length"]].set_index("configuration")["accuracy"]
    at[baseline] = line["accuracy_baseline"]  # on the seeds that both have
    first, second = [line["configuration"], baseline][:: 1 if line["difference"] >= 0 else -1]
    where_ = prompts_of(int(line["context_length"]), train_length, "they were")
    seeds = f"{line['seeds']} training seeds"
    if len(apart):
        share, other = f"{at[first]:.0%} of the {things} {where_}", f"{second} {at[second]:.0%} (means over {seeds})"
        if len(at) > 2 and np.isclose(at[first], at.max()):  # the best of several, and who finds as much
            best = [str(name) for name in at.index[np.isclose(at, at.max())]]
            return f"Of {len(at)} configurations {' and '.join(best)} find{'s' if len(best) == 1 else ''} most: {share}; {other}."
        return f"{first} finds {share}, {other}."
    return (
        f"{seeds[:1].upper()}{seeds[1:]} are too few to say whether {first} finds more than {second}: they find "
        f"{at[first]:.0%} and {at[second]:.0%} of the {things} {where_}."
    )


def seeds_sure(compared: pd.DataFrame, baseline: str) -> list[str]:
    """Return for each configuration how much more than the baseline it finds at each length, over training seeds (compare_seeds)."""
    said = []
    for name, lines in compared[compared["seeds"] > 1].groupby("configuration", sort=False):
        parts = [
            f"{line['difference']:+.2f} at {line['context_length']:,} tokens"
            + ("" if pd.isna(line["low"]) else f" (95% interval {line['low']:+.2f} to {line['high']:+.2f})")
            for line in lines.sort_values("context_length").to_dict("records")
        ]
        said.append(
            f"{name} minus {baseline}, mean over {int(lines['seeds'].max())} training seeds, Student's t: {'; '.join(parts)}."
        )
    return said


def prompts_of(length: int, train_length: int | None, it: str = "it was") -> str:
    """Name prompts by their length beside what a model was trained on."""
    if not train_length:
        return f"in prompts of {length:,} tokens"
    if length == train_length:
        return f"in prompts as long as {it} trained on ({length:,} tokens)"
    if length < train_length:
        return f"in prompts of {length:,} tokens ({it} trained on {train_length:,})"
    return f"in prompts {length / train_length:g} times as long as {it} trained on ({length:,} tokens)"
