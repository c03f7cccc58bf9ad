"""The page's part on training: the curves that the models' logs tell, and what holds over several seeds."""

from typing import Any

import pandas as pd

from .. import statistics
from . import figures
from .context import Context


def curves(rows: pd.DataFrame, context: Context) -> dict[str, Any] | None:
    """Return the training curves of the models on the page; None where no run record knows any."""
    known = [record.get("model", {}) for record in context.records]
    logs = {model["label"]: model["training"]["log"] for model in known if (model.get("training") or {}).get("log")}
    shown = set(rows["model"].unique())
    tables = {label: pd.DataFrame(log).apply(pd.to_numeric, errors="coerce") for label, log in logs.items()}
    frames = [
        log.assign(model=label)
        for label, log in tables.items()
        if label in shown and "tokens" in log and set(figures.PANELS) & set(log)
    ]
    if not frames:
        return None
    return context.drawn(figures.curves(pd.concat(frames)), "training")


def configurations(rows: pd.DataFrame, context: Context) -> dict[str, tuple[str, int]]:
    """Return the configuration and the training seed of every series whose run record tells them, if some configuration has two seeds."""
    found: dict[str, tuple[tuple[str, str], int]] = {}
    for name, training in context.of(rows, "training").items():
        if training and training.get("key") and isinstance(training.get("seed"), int):
            # the same training with another mechanism or RoPE at eval time is another configuration
            model = rows.loc[rows["series"] == name, "model"].iloc[0]
            extra = name.removeprefix(model).removeprefix(f", {training.get('attention')}")
            found[name] = (training["key"] + extra, training["configuration"] + extra), training["seed"]
    seeds: dict[tuple[str, str], set[int]] = {}
    for configuration, seed in found.values():
        seeds.setdefault(configuration, set()).add(seed)
    if not any(len(each) > 1 for each in seeds.values()):
        return {}
    # two trainings that words do not tell apart are told apart by their keys
    words = [text for _, text in seeds]
    return {
        name: (text if words.count(text) == 1 else f"{text} ({key[:6]})", seed)
        for name, ((key, text), seed) in found.items()
    }


def seeds_section(number: int, heading: str, rows: pd.DataFrame, context: Context) -> dict[str, Any] | None:
    """Return what holds over training seeds; None where no configuration has two."""
    known = configurations(rows, context)
    by_length = statistics.over_seeds(rows, known) if known else pd.DataFrame()
    if by_length.empty:
        return None
    each = statistics.lengths(rows[rows["series"].isin(list(known))])
    each["configuration"] = each["series"].map(lambda name: known[name][0])
    first = known.get(context.baseline_of(rows), next(iter(known.values())))[0]
    compared = statistics.compare_seeds(rows, known, first)
    lengths = sorted(by_length["context_length"].unique())
    tables = []
    for name, part in by_length.groupby("configuration", sort=False):
        own = {line["context_length"]: line for line in part.to_dict("records")}
        other = compared[compared["configuration"] == name]
        against = {line["context_length"]: line for line in other.to_dict("records")}
        tables.append(
            {"configuration": name, "own": [own.get(n) for n in lengths], "against": [against.get(n) for n in lengths]}
        )
    return {
        "heading": heading,
        "figure": context.drawn(figures.seeds_figure(by_length, each), f"seeds-{number:02}"),
        "lengths": [int(length) for length in lengths],
        "baseline": first,
        "tables": tables,
    }
