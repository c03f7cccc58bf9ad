"""The needed scale: the factor on the scores under which answers are most likely, by length, and how sure it is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from .clusters import CONFIDENCE, FEWEST, PLACE, Floats, clusters, with_plan
from .exact import drawn_again
from .series import TASK, told

STEP = math.log(2) / 16  # of ln C, between the points at which curves are averaged
KEY = [*TASK, "series", "control", "scaled"]
PROMPT = [*KEY, "context_length", "depth_percent", "prompt_sha256"]
COLUMNS = [
    *KEY, "context_length", "prompts", "trials", "best", "low", "high", "nll", "nll_as_is",
    "best_by_accuracy", "low_by_accuracy", "high_by_accuracy", "accuracy", "accuracy_as_is", "at_an_end",
]  # fmt: skip


@dataclass(frozen=True)
class Needed:
    """The best factors of one series, control and thing that is scaled, by length.

    key: what they are of, by the names of KEY. lines: one for each length (needed_scale). draws (resamples, lengths): the best
    factor when trials are drawn again, the same trials at every length; no resamples with fewer than FEWEST trials.
    """

    key: dict[str, Any]
    lines: pd.DataFrame
    draws: Floats

    @property
    def lengths(self) -> Floats:
        return self.lines["context_length"].to_numpy(dtype=float)

    @property
    def best(self) -> Floats:
        return self.lines["best"].to_numpy(dtype=float)


def needed_scale(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series, control, thing that is scaled and context length, of rows of the probe needed-scale.

    best: the factor C with the lowest mean nll over prompts. Each prompt's nll is interpolated in ln C between the factors it was
    read under (monotone cubics), the mean is taken on a grid of 16 points a doubling, and a parabola through the lowest three
    gives the lowest point. low, high: its 95% interval, percentiles when trials (clusters.clusters) are drawn again; NaN with fewer than
    FEWEST trials. nll, nll_as_is: mean nats there, and without a factor. best_by_accuracy: the middle, in ln C, of the factors
    with which most answers are right, NaN where all are alike; accuracy, accuracy_as_is: the share there and without a factor. A
    choice on the prompts it is judged by flatters. at_an_end: the best is the smallest or largest factor that was read, so it may
    lie beyond.
    """
    found = [each.lines for each in best_factors(rows)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def best_factors(rows: pd.DataFrame) -> list[Needed]:
    """Return the best factors of each series, control and thing that is scaled; rows: with_series, those of other probes are left out."""
    return list(_each(rows)) if "factors" in rows else []


def _each(rows: pd.DataFrame) -> Iterator[Needed]:
    known = rows[rows["factors"].map(lambda each: isinstance(each, list))]
    part = with_plan(told(known, [*PROMPT, *PLACE, "factors", "nlls", "verdicts"]))
    # a prompt that two runs read counts once
    part = part.loc[~part[PROMPT].astype(object).duplicated()]
    for key, own in part.groupby(KEY, sort=False, dropna=False):
        yield of_one(dict(zip(KEY, key, strict=True)), own)


def of_one(key: dict[str, Any], rows: pd.DataFrame, seed: int = 0) -> Needed:
    """Return the best factors of the rows of one series, control and thing that is scaled."""
    if key["control"] == "needle-only":  # as long as its needle: about one length
        rows = rows.assign(context_length=int(rows["context_length"].median()))
    unit = pd.factorize(clusters(rows, by_length=False), sort=True)[0]
    grid = grid_of(rows)
    nlls, right = curves(rows, "nlls", grid), curves(rows, "verdicts", grid)
    lengths = np.sort(rows["context_length"].unique())
    at, units = np.searchsorted(lengths, rows["context_length"]), int(unit.max()) + 1
    sums = np.zeros((2, units, len(lengths), len(grid)))
    counts = np.zeros((units, len(lengths)))
    np.add.at(counts, (unit, at), 1)
    for total, each in zip(sums, (nlls, right), strict=True):
        np.add.at(total, (unit, at), each)
    whole = counts.sum(0)[:, None]
    mean, share = (total.sum(0) / whole for total in sums)
    best, by_accuracy = lowest(mean, grid), middle_of_highest(share, grid)
    alike = np.nanmax(share, axis=1) - np.nanmin(share, axis=1) < 1e-9  # all right or all wrong: no factor is the best
    draws = by_accuracy_draws = np.empty((0, len(lengths)))
    if units >= FEWEST:
        found: tuple[list[Floats], list[Floats]] = ([], [])
        for times in drawn_again(units, seed):
            drawn = (times @ counts)[..., None]
            for total, of_them, kept in zip(sums, (lowest, middle_of_highest), found, strict=True):
                with np.errstate(invalid="ignore", divide="ignore"):
                    means = (times @ total.reshape(units, -1)).reshape(len(times), len(lengths), -1) / drawn
                kept.append(of_them(means, grid))
        draws, by_accuracy_draws = (np.exp(np.concatenate(each)) for each in found)
    zero = int(np.abs(grid).argmin())
    lines = pd.DataFrame(
        {
            **{name: [value] * len(lengths) for name, value in key.items()},
            "context_length": lengths,
            "prompts": whole[:, 0].astype(int),
            "trials": (counts > 0).sum(0),
            "best": np.exp(best),
            **interval(draws, len(lengths)),
            "nll": at_point(mean, grid, best),
            "nll_as_is": mean[:, zero],
            "best_by_accuracy": np.where(alike, np.nan, np.exp(by_accuracy)),
            **{
                f"{end}_by_accuracy": np.where(alike, np.nan, each)
                for end, each in interval(by_accuracy_draws, len(lengths)).items()
            },
            "accuracy": np.nanmax(share, axis=1),
            "accuracy_as_is": share[:, zero],
            "at_an_end": (best <= grid[0] + STEP / 2) | (best >= grid[-1] - STEP / 2),
        }
    )
    return Needed(key, lines[COLUMNS], draws)


def grid_of(rows: pd.DataFrame) -> Floats:
    """Return the points of ln C at which curves are averaged: from the smallest to the largest factor, 0 among them."""
    ends = [(min(each), max(each)) for each in rows["factors"]]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    grid: Floats = STEP * np.arange(round(math.log(low) / STEP), round(math.log(high) / STEP) + 1).astype(np.float64)
    return grid


def curves(rows: pd.DataFrame, name: str, grid: Floats) -> Floats:
    """Return each prompt's nlls or verdicts (prompts, grid) between the factors it was read under; NaN where nothing was read."""
    out = np.full((len(rows), len(grid)), np.nan)
    for line, factors, values in zip(out, rows["factors"], rows[name], strict=True):
        known = [(math.log(c), float(value)) for c, value in zip(factors, values, strict=True) if value is not None]
        if len(known) > 1:
            at, value = np.array(known).T
            inside = (grid >= at[0] - STEP / 2) & (grid <= at[-1] + STEP / 2)
            points = grid[inside].clip(at[0], at[-1])
            line[inside] = PchipInterpolator(at, value)(points) if name == "nlls" else np.interp(points, at, value)
    return out


def lowest(curve: Floats, grid: Floats) -> Floats:
    """Return where curves (..., grid) are lowest: at the vertex of the parabola through the lowest point and its neighbours."""
    filled = np.where(np.isnan(curve), np.inf, curve)
    i = filled.argmin(-1)
    inner = i.clip(1, len(grid) - 2)
    before, there, after = (np.take_along_axis(filled, (inner + k)[..., None], -1)[..., 0] for k in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        bend = before - 2 * there + after
        shift = np.where(bend > 0, (before - after) / (2 * bend), 0.0)
    shift = np.where((i == inner) & np.isfinite(shift), shift.clip(-1, 1), 0.0)
    return np.where(np.isfinite(filled.min(-1)), grid[i] + STEP * shift, np.nan)


def middle_of_highest(curve: Floats, grid: Floats) -> Floats:
    """Return the middle of the points at which curves (..., grid) are highest."""
    filled = np.where(np.isnan(curve), -np.inf, curve)
    top = filled.max(-1, keepdims=True)
    highest = (filled >= top - 1e-9) & np.isfinite(top)
    with np.errstate(invalid="ignore"):
        middle: Floats = (highest * grid).sum(-1) / highest.sum(-1)
    return middle


def at_point(curve: Floats, grid: Floats, point: Floats) -> Floats:
    """Return curves (lengths, grid) at one point each; no lower than they are at the points of the grid."""
    found = [
        np.nan if np.isnan(x) else np.interp(x, grid[~np.isnan(y)], y[~np.isnan(y)])
        for x, y in zip(point, curve, strict=True)
    ]
    return np.array(found)


def interval(draws: Floats, lengths: int) -> dict[str, Floats]:
    """Return the bounds of the 95% interval of what was found in draws (resamples, lengths); NaN without draws."""
    if not len(draws):
        return {"low": np.full(lengths, np.nan), "high": np.full(lengths, np.nan)}
    low, high = np.nanquantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return {"low": low, "high": high}
