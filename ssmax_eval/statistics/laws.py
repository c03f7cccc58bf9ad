"""Laws of length for the needed scale: fitted to its best factors, and compared by the error at lengths left out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .clusters import Floats
from .needed import KEY, STEP, Needed, interval

LEAST = 1e-6  # a prediction of C below counts as this


@dataclass(frozen=True)
class Law:
    """C(n) as a sum of terms, or with `log` ln C(n) as one.

    parameters: the names of the terms' coefficients; without any the one term is C itself. terms: of lengths and the training
    length, (lengths, terms).
    """

    name: str
    parameters: tuple[str, ...]
    terms: Callable[[Floats, float], Floats]
    log: bool = False
    needs_length: bool = False  # the training length

    @property
    def said(self) -> str:
        """The law as pages have it: its coefficient is on top of the model's own scale, so it is not called s."""
        return self.name.replace("s ln n", "a ln n")


def stacked(*columns: Floats) -> Floats:
    return np.stack(columns, axis=-1)


# the fewer parameters the further in front: of two laws with the same error the first is taken
LAWS = (
    Law("1", (), lambda n, _: stacked(np.ones_like(n))),
    Law(
        "max(1, ln n / ln L)",
        (),
        lambda n, length: stacked(np.maximum(1, np.log(n) / math.log(length))),
        needs_length=True,
    ),
    Law("a", ("a",), lambda n, _: stacked(np.ones_like(n))),
    Law("s ln n", ("s",), lambda n, _: stacked(np.log(n))),
    Law("a (ln n)^1/2", ("a",), lambda n, _: stacked(np.sqrt(np.log(n)))),
    Law(
        "a max(1, ln n / ln L)",
        ("a",),
        lambda n, length: stacked(np.maximum(1, np.log(n) / math.log(length))),
        needs_length=True,
    ),
    Law("a + b ln n", ("a", "b"), lambda n, _: stacked(np.ones_like(n), np.log(n))),
    Law("a n^g", ("a", "g"), lambda n, _: stacked(np.ones_like(n), np.log(n)), log=True),
)
PARAMETERS = ("a", "b", "s", "g")
LAW = (*PARAMETERS, "low", "high", "power", "error", "weight", "lengths")


def scale_laws(found: Sequence[Needed], train_lengths: Mapping[str, int | None] | None = None) -> pd.DataFrame:
    """Return one line per series, control, thing that is scaled and law: its coefficients, its error and its weight.

    Each law is fitted to the best factors by least squares, a length weighing as 1 / variance of its best factor over draws of
    trials (at least that of the grid; alike without draws). error: the root mean square of ln(predicted / best) at each length when it is
    left out of the fit; NaN where too few lengths are left. weight: the share of draws, trials drawn again, in which the law has
    the smallest error of all; NaN without draws. low, high: the 95% interval of the coefficient of a law with one, percentiles
    over draws. power: that of ln n with which the fitted law grows over the lengths, as in scale_growth. train_lengths: L of each
    series; the law with L is left out where it is unknown. n is the context length.
    """
    lines = []
    for each in found:
        length = (train_lengths or {}).get(str(each.key["series"]))
        laws = [law for law in LAWS if not law.needs_length or (length or 0) >= 2]
        if length is not None and length <= each.lengths.min():  # which is s ln n then
            laws = [law for law in laws if not (law.needs_length and law.parameters)]
        lines += [each.key | line for line in of_laws(laws, each.lengths, each.best, each.draws, length or math.nan)]
    return pd.DataFrame(lines, columns=[*KEY, "law", *LAW])


def scale_growth(found: Sequence[Needed]) -> pd.DataFrame:
    """Return one line per series, control and thing that is scaled: the power p with which its best factors grow, C = a (ln n)^p.

    0 is a constant temperature, 1 is s ln n. ln C is fitted on ln ln n by least squares with the weights of scale_laws. low, high:
    the 95% interval of p, percentiles over draws of trials; NaN without draws. p is NaN with fewer than two lengths.
    """
    lines = []
    for each in found:
        power = low = high = math.nan
        if len(each.lengths) > 1:
            fitted = powers(each.lengths, spread_of(each.best, each.draws))
            power = float(fitted @ np.log(each.best))
            whole = each.draws[~np.isnan(each.draws).any(1)]
            ends = interval(np.log(whole) @ fitted[:, None], 1)
            # what is left of nothing by rounding is no growth
            low, high = (round(float(ends[name][0]), 6) for name in ("low", "high"))
        lines.append(each.key | {"power": power, "low": low, "high": high, "lengths": len(each.lengths)})
    return pd.DataFrame(lines, columns=[*KEY, "power", "low", "high", "lengths"])


def powers(lengths: Floats, spread: Floats) -> Floats:
    """Return what maps ln C at the lengths to the power of ln n with which C grows, (lengths,)."""
    found: Floats = solve(stacked(np.ones_like(lengths), np.log(np.log(lengths))), 1 / spread)[1]
    return found


def growth_told_twice(growth: pd.DataFrame, laws: pd.DataFrame) -> pd.DataFrame:
    """Return scale_growth with the law that scale_laws gives most weight, told in another way: at lengths left out of a fit.

    law, weight, law_power: of that law. agree: its power lies in the interval of growth. direction: 1 where both ways say that C
    grows, -1 where both say that it falls, 0 where the interval holds 0; NaN where they contradict each other, or without interval.
    The two weigh lengths differently, and only lengths left out tell that no law fits.
    """
    known = laws[laws["weight"].notna()]
    first = known.loc[known.groupby(KEY, sort=False, dropna=False)["weight"].idxmax(), [*KEY, "law", "weight", "power"]]
    out = growth.merge(first.rename(columns={"power": "law_power"}), on=KEY, how="left")
    power = out["law_power"].round(6)
    out["agree"] = (out["low"] <= power) & (power <= out["high"])
    out["direction"] = np.select(
        [out["low"].isna(), (out["low"] <= 0) & (out["high"] >= 0), (out["low"] > 0) & (power > 0), (out["high"] < 0) & (power < 0)],
        [math.nan, 0.0, 1.0, -1.0],
        math.nan,
    )  # fmt: skip
    return out


def spread_of(best: Floats, draws: Floats) -> Floats:
    """Return the standard deviation of ln C at each length over draws of trials, at least that of the grid."""
    spread = np.nanstd(np.log(draws), axis=0) if len(draws) else np.zeros(len(best))
    found: Floats = np.sqrt(spread**2 + STEP**2 / 12)
    return found


def of_laws(
    laws: Sequence[Law], lengths: Floats, best: Floats, draws: Floats, train_length: float = math.nan
) -> list[dict[str, Any]]:
    """Return each law's coefficients, error and weight on best factors (lengths,) and those of draws (resamples, lengths)."""
    spread = spread_of(best, draws)
    whole = draws[~np.isnan(draws).any(1)] if len(draws) else draws
    errors = []
    alone: list[float] = []
    lines = []
    for law in laws:
        terms = law.terms(lengths, train_length)
        weights = 1 / (spread if law.log else best * spread)
        operator = leaving_one_out(terms, weights) if law.parameters else None
        enough = len(best) >= len(law.parameters)
        fitted = solve(terms, weights) @ (np.log(best) if law.log else best) if enough else [math.nan] * 2
        told = {name: float(value) for name, value in zip(law.parameters, fitted, strict=False)}
        if law.log and enough:
            told["a"] = math.exp(told["a"])
        fixed = None if law.parameters else terms[:, 0]
        error = errors_of(law, operator, best[None], fixed)[0]
        errors.append(errors_of(law, operator, whole, fixed))
        alone.append(float(error))
        line = {"law": law.name, **told, "error": float(error)}
        if len(law.parameters) == 1 and len(whole):
            ends = interval(whole @ solve(terms, weights).T, 1)
            line |= {end: float(each[0]) for end, each in ends.items()}
        if enough and len(lengths) > 1:
            line["power"] = float(powers(lengths, spread) @ np.log(law_values(line, lengths, train_length).clip(LEAST)))
        lines.append(line)
    shares = wins(np.array(errors)) if len(whole) else np.full(len(laws), np.nan)
    untested = np.isnan(alone)  # by too few lengths, which is not refuted
    shares = np.where(untested, np.nan, shares)
    return [line | {"weight": float(share), "lengths": len(best)} for line, share in zip(lines, shares, strict=True)]


def solve(terms: Floats, weights: Floats) -> Floats:
    """Return what maps values to coefficients by weighted least squares, (parameters, lengths)."""
    operator: Floats = np.linalg.pinv(terms * weights[:, None]) * weights
    return operator


def leaving_one_out(terms: Floats, weights: Floats) -> Floats | None:
    """Return what maps values to each one's prediction from the others, (lengths, lengths); None where too few are left."""
    count, parameters = terms.shape
    operator = np.zeros((count, count))
    for i in range(count):
        others = np.arange(count) != i
        if others.sum() < parameters:
            return None
        operator[i, others] = terms[i] @ solve(terms[others], weights[others])
    return operator


def errors_of(law: Law, operator: Floats | None, values: Floats, fixed: Floats | None = None) -> Floats:
    """Return the root mean square of ln(predicted / value) over lengths, for each line of values (any, lengths).

    operator: as leaving_one_out gives it. fixed: what is predicted by a law without parameters.
    """
    if operator is None and fixed is None:
        return np.full(len(values), np.nan)
    known = np.log(values)
    if operator is None:
        predicted = np.log(np.asarray(fixed))[None]
    else:
        predicted = known @ operator.T if law.log else np.log(np.maximum(values @ operator.T, LEAST))
    error: Floats = np.sqrt(((predicted - known) ** 2).mean(1))
    return error


def wins(errors: Floats) -> Floats:
    """Return the share of columns in which each line is the lowest; of equal ones the first is."""
    if np.isnan(errors).all():
        return np.full(len(errors), np.nan)
    first = np.where(np.isnan(errors), np.inf, errors).round(9).argmin(0)
    return np.bincount(first, minlength=len(errors)) / errors.shape[1]


def law_values(line: Mapping[str, Any], lengths: Floats, train_length: float = math.nan) -> Floats:
    """Return C(n) of a line of scale_laws at some lengths."""
    law = next(law for law in LAWS if law.name == line["law"])
    terms = law.terms(lengths, train_length)
    if law.log:
        return np.asarray(line["a"] * lengths ** line["g"], dtype=float)
    return np.asarray(terms @ np.array([line[name] for name in law.parameters] or [1.0]), dtype=float)
