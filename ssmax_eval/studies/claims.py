"""The paper's claims as differences with intervals: what was claimed, what was measured here, and what that says."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ..statistics.clusters import CONFIDENCE, FEWEST

REPRODUCED, NOT, UNKNOWN = "reproduced", "not reproduced", "cannot be told at this size"
SAME = 1e-6  # a difference of less is none
FEW = 6  # seeds whose own values are told
ROUNDING = 1e-3  # nats
MOST_SEEDS = 30  # that anybody would train to know


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95% interval, and what it is over: n of `units`. sd: of one unit. values: of each unit, where there are few."""

    mean: float
    low: float
    high: float
    n: int
    units: str
    sd: float = math.nan
    values: tuple[float, ...] = ()

    @property
    def one_seed(self) -> bool:
        """Whether it is of one seed's trials or documents, or of nothing else than one seed."""
        return self.units.endswith("of 1 seed") or (self.units == "seeds" and self.n == 1)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        interval = "" if math.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]"
        each = f" ({', '.join(f'{value:+.3f}' for value in self.values)})" if len(self.values) > 1 else ""
        return (
            f"{self.mean:+.3f}{interval}, {self.n} {self.units if self.n != 1 else self.units.removesuffix('s')}{each}"
        )


def over(values: Sequence[float], units: str, most: float = math.inf) -> Estimate:
    """Return the mean of values with Student's interval; none of fewer than 2, or of equal ones, which prove nothing.

    most: how large they can be, either way: the interval is cut there.
    """
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0, units)
    mean = float(known.mean())
    told = tuple(float(value) for value in known) if units == "seeds" and len(known) <= FEW else ()
    if len(known) < 2 or np.ptp(known) == 0:
        return Estimate(mean, math.nan, math.nan, len(known), units, values=told)
    sd = float(known.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(known) - 1) * sd / math.sqrt(len(known)))
    return Estimate(mean, max(-most, mean - half), min(most, mean + half), len(known), units, sd, told)


def paired(one: pd.DataFrame, other: pd.DataFrame, value: str, units: str, most: float = math.inf) -> Estimate:
    """Return the mean difference of what two tables have in common, by seed; of one seed alone, by unit within it.

    one, other: columns seed, unit and the value; a seed's value is the mean over its units (trials, documents). most: as in over.
    """
    both = one.merge(other, on=["seed", "unit"], suffixes=("", "_other"))
    both["difference"] = both[value] - both[f"{value}_other"]
    by_seed = both.groupby("seed")["difference"].mean()
    if len(by_seed) > 1:
        return over(by_seed.tolist(), "seeds", most)
    found = over(both.groupby("unit")["difference"].mean().tolist(), f"{units} of 1 seed", most)
    return found if found.n >= FEWEST else Estimate(found.mean, math.nan, math.nan, len(by_seed), "seeds")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. figure: where the paper shows it. sign: of the difference that it claims. measure: what the numbers are."""

    text: str
    figure: str
    measure: str
    found: tuple[Estimate, ...]
    signs: tuple[int, ...] = (1,)
    margin: float = 0.0  # differences of less count for neither
    told: str = ""  # in place of the numbers
    labels: tuple[str, ...] = ()  # of each number, where there are several
    holds: bool | None = None  # where no interval decides

    @property
    def verdict(self) -> str:
        """Reproduced if all its intervals lie on the claimed side, not if any lies on the other, else it cannot be told."""
        if self.holds is not None:
            return REPRODUCED if self.holds else NOT
        if any(each.one_seed for each in self.found):
            return UNKNOWN  # one seed proves nothing of others
        signed = [
            (sign * low, sign * high) if sign > 0 else (sign * high, sign * low)
            for sign, low, high in (
                (sign, each.low, each.high) for sign, each in zip(self.signs, self.found, strict=True)
            )
        ]
        if any(high < self.margin for _, high in signed):
            return NOT
        return REPRODUCED if all(low > self.margin for low, _ in signed) else UNKNOWN

    @property
    def would_tell(self) -> str:
        """Say what would tell, where the verdict is that it cannot be told."""
        if self.verdict != UNKNOWN:
            return ""
        bounds = [sign * self.margin for sign in self.signs]
        told = [needed(each, bound) for each, bound in zip(self.found, bounds, strict=True)]
        return "; ".join(dict.fromkeys(filter(None, told)))

    @property
    def numbers(self) -> str:
        labels = self.labels or [""] * len(self.found)
        shown = [f"{label}: {each}" if label else str(each) for label, each in zip(labels, self.found, strict=True)]
        return self.told or "; ".join(shown)

    @property
    def claimed(self) -> str:
        """Say on which side of 0, or of the margin, each difference is claimed to be."""
        if self.holds is not None:
            return ""
        sides = [f"{'above' if sign > 0 else 'below'} {sign * self.margin or 0:g}" for sign in self.signs]
        return f"claimed: {', '.join(sides) if len(set(sides)) > 1 else sides[0]}"

    @property
    def by_arithmetic(self) -> bool:
        """Whether no trained model takes part in it."""
        return self.holds is not None


def needed(found: Estimate, bound: float = 0.0) -> str:
    """Say how many seeds would tell what was seen from a bound, if the interval holds it."""
    if math.isnan(found.mean):
        return "this configuration is not among the models, or has no scores"
    if found.one_seed:
        return "one seed: train two more"
    if found.low > bound or found.high < bound:
        return ""
    if abs(found.mean - bound) < SAME:
        return "no difference at all was seen: harder prompts would tell more than seeds"
    if math.isnan(found.sd):
        return f"all {found.n} {found.units} differ by as much, which gives no interval: harder prompts would"
    for seeds in range(found.n + 1, MOST_SEEDS + 1):
        if stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * found.sd / math.sqrt(seeds) < abs(found.mean - bound):
            return f"if mean and spread stay as they are, {seeds} seeds"
    return f"more than {MOST_SEEDS} seeds, if mean and spread stay as they are"


def ledger(found: Mapping[str, Estimate], figures: Mapping[str, str]) -> Iterator[Claim]:
    """Yield the paper's claims in its order.

    found: estimates by name (paper_numbers.estimates). figures: of closed forms, what is told in place of an estimate.
    """
    yield Claim(
        "SSMax trains to a lower loss than softmax.", "4",
        "training loss on text, (b) minus (a), last tenth of the steps, nats a token", (found["loss b-a"],), (-1,),
    )  # fmt: skip
    yield Claim(
        "With a bias (d) the training loss is the lowest.", "4",
        "the same", (found["loss d-a"], found["loss d-b"]), (-1, -1), labels=("(d) minus (a)", "(d) minus (b)"),
    )  # fmt: skip
    yield Claim(
        "Under softmax the largest weight goes to 0 as the context grows; under SSMax it does not.", "1",
        "closed form, from 10 to 100,000 keys", (), told=figures["1"], holds=True,
    )  # fmt: skip
    yield Claim(
        "The learned p_n grows as ln n.", "2",
        "slope a1 of p_n = a1 ln n + a2, fitted to n from 2 to L - 1 (L: the training length); R² of the fit on ln n minus R² of one on n",
        (found["p slope"], found["p ln n"]), (1, 1), labels=("a1", "R²"),
    )  # fmt: skip
    yield Claim(
        "Far beyond the training length SSMax has the lower loss.", "5",
        "loss at 11 to 20 times the training length, (b) minus (a), nats a token", (found["far loss b-a"],), (-1,),
    )  # fmt: skip
    yield Claim(
        "Around ten times the training length SSMax retrieves more than softmax.", "6",
        "needles found at 8 and 16 times, (b) minus (a)", (found["found b-a"],),
        told=f"(b) {found['found b'].mean:.2f}, (a) {found['found a'].mean:.2f}: {found['found b-a']}",
    )  # fmt: skip
    yield Claim(
        "With s fixed at 1 (c) less is retrieved.", "6", "needles found at 8 and 16 times, (c) minus (b)", (found["found c-b"],), (-1,),
    )  # fmt: skip
    yield Claim(
        "With a bias (d) less is retrieved.", "6", "needles found at 8 and 16 times, (d) minus (b)", (found["found d-b"],), (-1,),
    )  # fmt: skip
    for letter, when in (("e", "after training"), ("f", "late in training")):
        yield Claim(
            f"Put in {when} ({letter}), SSMax helps in part.", "6",
            "needles found at 8 and 16 times",
            (found[f"found {letter}-a"], found[f"found {letter}-b"]), (1, -1), labels=(f"({letter}) minus (a)", f"({letter}) minus (b)"),
        )  # fmt: skip
    yield Claim(
        "Put in after training (e), SSMax is worse at short contexts.", "5",
        "loss within the training length, (e) minus (a), nats a token", (found["short loss e-a"],),
    )  # fmt: skip
    yield Claim(
        "Under SSMax the best head has more attention on the key tokens.", "7, 8",
        "mass on the answer of each prompt's highest head at 8 times the training length, (b) minus (a)", (found["mass b-a"],),
    )  # fmt: skip
    yield Claim(
        "Heads with a large s are those that retrieve.", "7",
        "rank correlation of learned s and mass on the answer at the training length, (b)",
        (found["s mass"], found["s mass in layers"]), (1, 1), labels=("over all heads", "within layers"),
    )  # fmt: skip
    yield Claim(
        "With s too large attention collapses onto one token.", "3",
        "(a) with its scores times 5 ln n, at the training length: changes of its heads' mean entropy, nats, and of the needles found",
        (found["large entropy"], found["large found"]), (-1, -1), labels=("entropy", "found"),
    )  # fmt: skip
    yield Claim(
        "With s near 0 and a bias of 1 it is softmax again.", "3",
        "(a) read with s = 0 and b = 1: the largest change of an answer's nll",
        (found["zero"],), told=f"{found['zero'].mean:.1g} nats, {found['zero'].n} prompts",
        holds=None if math.isnan(found["zero"].mean) else found["zero"].mean < ROUNDING,
    )  # fmt: skip
    yield Claim(
        "It costs one multiplication.", "–",
        "processor time that (b) takes more than (a), as a share; the bound of 5% is ours",
        (found["step"], found["token"]), (-1, -1), -0.05, labels=("a training step", "reading a token"),
    )  # fmt: skip
