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
ROUNDING = 1e-3  # nats
MOST_SEEDS = 30  # that anybody would train to know


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95% interval, and what it is over: n of `units`. sd: of one unit."""

    mean: float
    low: float
    high: float
    n: int
    units: str
    sd: float = math.nan

    @property
    def one_seed(self) -> bool:
        """Whether it is of one seed's trials or documents, or of nothing else than one seed."""
        return self.units.endswith("of 1 seed") or (self.units == "seeds" and self.n == 1)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        interval = "" if math.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{interval}, {self.n} {self.units if self.n != 1 else self.units.removesuffix('s')}"


def over(values: Sequence[float], units: str, most: float = math.inf) -> Estimate:
    """Return the mean of values with Student's interval; none of fewer than 2, or of equal ones, which prove nothing.

    most: how large they can be, either way: the interval is cut there.
    """
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan, 0, units)
    mean = float(known.mean())
    if len(known) < 2 or np.ptp(known) == 0:
        return Estimate(mean, math.nan, math.nan, len(known), units)
    sd = float(known.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(known) - 1) * sd / math.sqrt(len(known)))
    return Estimate(mean, max(-most, mean - half), min(most, mean + half), len(known), units, sd)


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
        return self.told or "; ".join(map(str, self.found))


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
            return f"about {seeds} seeds would tell a difference of this size"
    return f"more than {MOST_SEEDS} seeds would be needed for a difference of this size"


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
        "the same, (d) minus (a); (d) minus (b)", (found["loss d-a"], found["loss d-b"]), (-1, -1),
    )  # fmt: skip
    yield Claim(
        "Under softmax the largest weight goes to 0 as the context grows; under SSMax it does not.", "1",
        "closed form, from 10 to 100,000 keys", (), told=figures["1"], holds=True,
    )  # fmt: skip
    yield Claim(
        "The learned p_n grows as ln n.", "2",
        "slope a1 of p_n = a1 ln n + a2, n from 2 to L - 1; and how much more of p_n's variance ln n explains than n does",
        (found["p slope"], found["p ln n"]), (1, 1),
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
            f"needles found at 8 and 16 times, ({letter}) minus (a); ({letter}) minus (b)",
            (found[f"found {letter}-a"], found[f"found {letter}-b"]), (1, -1),
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
        "rank correlation over heads of (b): learned s and mass on the answer at the training length", (found["s mass"],),
    )  # fmt: skip
    yield Claim(
        "With s too large attention collapses onto one token.", "3",
        "(a) read with C = 5 ln n: entropy of its heads, nats, and needles found, both minus (a)'s own, at the training length",
        (found["large entropy"], found["large found"]), (-1, -1),
    )  # fmt: skip
    yield Claim(
        "With s near 0 and a bias of 1 it is softmax again.", "3",
        "the answers' nll of (a), read so, minus its own: the largest of all prompts",
        (found["zero"],), told=f"{found['zero'].mean:.1e} nats, {found['zero'].n} prompts",
        holds=None if math.isnan(found["zero"].mean) else found["zero"].mean < ROUNDING,
    )  # fmt: skip
    yield Claim(
        "It costs one multiplication.", "–",
        "processor time of (b) over (a)'s, minus 1: a training step; reading a token. Reproduced below 5%",
        (found["step"], found["token"]), (-1, -1), -0.05,
    )  # fmt: skip
