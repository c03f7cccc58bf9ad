"""Does `ssmax-eval reach` tell the truth, and for how many tokens? python benchmarks/reach_simulation.py [--models N] [--strata A,...]

Simulated models whose accuracy at each length and depth is known answer as a coin with that chance. For each: reach's rounds until
its interval of the effective length is within the precision, and a fixed grid whose trials are added until the same posterior of
its rows is as precise: of the default lengths (octaves), and of lengths a factor `precision` and `precision`^2 apart, the cheapest
of which is what we compare with. Covered: the interval holds the length at which accuracy, mean over depths, last is 85% of that at
the shortest. Strata: steep, flat, non-monotone in depth, two steps, a dip that ends, censored, few found at the shortest length,
and the stored curves of packs (--packs), their cells as chances, with straight lines between lengths.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm

from ssmax_eval import statistics
from ssmax_eval.results import load_results
from ssmax_eval.statistics.crossing import Ladder, crossing
from ssmax_eval.statistics.reach import SHARE
from ssmax_eval.studies.reach import LIMIT
from ssmax_eval.studies.rounds import TRIALS, narrowing

SHORTEST, LONGEST = 256, 4096
DEPTHS = tuple(range(0, 101, 10))
Chance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of length and depth percent
MOST = 10  # times reach's tokens, beyond which no grid is tried
ALIKE = 0.1  # correlation of a trial's prompts before they are cut into right and wrong; after it about .05, as in the packs
OCTAVES = np.log2(LONGEST / SHORTEST)


def octaves(lengths):
    return np.log2(np.asarray(lengths, float) / SHORTEST)


def logistic(level, middle, width, shift=lambda depths: 0.0) -> Chance:
    """Accuracy that falls from a level around `middle`, octaves above the shortest, over a width; depths shift it."""
    return lambda lengths, depths: level * expit((middle + shift(depths) - octaves(lengths)) / width)


def steep(rng) -> Chance:
    return logistic(rng.uniform(0.9, 1), rng.uniform(0.5, 3.8), rng.uniform(0.03, 0.15))


def flat(rng) -> Chance:
    return logistic(rng.uniform(0.85, 1), rng.uniform(2.2, 5), rng.uniform(0.4, 0.8))


def by_depth(rng) -> Chance:
    """Lost in the middle, or at two places: some depths go an octave or more before others."""
    places, much = rng.uniform(15, 85, rng.integers(1, 3)), rng.uniform(0.6, 2.0)
    shift = lambda depths: -much * sum(np.exp(-0.5 * ((depths - place) / 15) ** 2) for place in places)  # noqa: E731
    return logistic(rng.uniform(0.9, 1), rng.uniform(1.5, 4), rng.uniform(0.05, 0.35), shift)


def two_steps(rng) -> Chance:
    """Falls to a plateau and later to nothing, at all depths."""
    left, first = rng.uniform(0.5, 0.95), rng.uniform(0.4, 2.5)
    one = logistic(1 - left, first, rng.uniform(0.03, 0.2))
    two = logistic(left, first + rng.uniform(0.8, 2), rng.uniform(0.03, 0.2))
    level = rng.uniform(0.9, 1)
    return lambda lengths, depths: level * (one(lengths, depths) + two(lengths, depths))


def straight(rng) -> Chance:
    """Falls slowly along a straight line, from a corner on: of no form that the prior knows."""
    level, corner, slope = rng.uniform(0.85, 1), rng.uniform(0, 2.5), rng.uniform(0.12, 0.35)
    return lambda lengths, depths: level * np.clip(1 - slope * np.maximum(octaves(lengths) - corner, 0), 0, 1)


def dip(rng) -> Chance:
    """Loses up to half over an octave or less, comes back, and falls later."""
    fall, deep, wide = rng.uniform(2.2, 3.8), rng.uniform(0.1, 0.5), rng.uniform(0.15, 0.4)
    at, rest = rng.uniform(0.5, fall - 1), logistic(rng.uniform(0.9, 1), fall, rng.uniform(0.05, 0.2))
    return lambda lengths, depths: (
        rest(lengths, depths) * (1 - deep * np.exp(-0.5 * ((octaves(lengths) - at) / wide) ** 2))
    )


def censored(rng) -> Chance:
    """Holds to the longest length, in half of them not by much."""
    level = rng.uniform(0.85, 1)
    return logistic(level, 10, 0.3) if rng.random() < 0.5 else logistic(level, OCTAVES + rng.uniform(0.8, 1.5), 0.4)


def weak(rng) -> Chance:
    """Finds little even at the shortest length."""
    return logistic(rng.uniform(0.4, 0.75), rng.uniform(1, 3.8), rng.uniform(0.05, 0.3))


STRATA = {each.__name__: each for each in (steep, flat, by_depth, two_steps, straight, dip, censored, weak)}


def stored(path: Path) -> dict[str, tuple[Chance, tuple[float, ...], int, int]]:
    """Return the curves of a pack's needle rows: each cell's accuracy, drawn to its length's by one prompt, straight between lengths."""
    rows = load_results(path)
    rows = statistics.with_series(rows[rows["probe"].isin(["needle", "attention"]) & rows["control"].isna()])
    found = {}
    for (_, haystack, name), part in rows[rows["correct"].notna()].groupby(["task", "haystack", "series"]):
        part = part.assign(right=part["correct"].astype(float))
        cells = part.pivot_table(
            index="context_length", columns="depth_percent", values="right", aggfunc=["sum", "count"]
        )
        cells = cells.dropna()
        if len(cells) < 3:
            continue
        right, asked = (cells[name].to_numpy(float) for name in ("sum", "count"))
        means = right.sum(1, keepdims=True) / asked.sum(1, keepdims=True)
        table = (right + means) / (asked + 1)
        lengths, depths = cells.index.to_numpy(float), tuple(cells["sum"].columns)

        def chance(at, depth, table=table, lengths=lengths, depths=depths):
            each = np.array([np.interp(np.log(at), np.log(lengths), line) for line in table.T])
            return each[[depths.index(d) for d in np.ravel(depth)], np.arange(each.shape[1])] if np.ndim(at) else each

        found[f"{path.stem}: {name}, {haystack}"] = (chance, depths, int(lengths[0]), int(lengths[-1]))
    return found


def table_of(chance: Chance, lengths, depths) -> np.ndarray:
    """Return the chance of every length and depth."""
    at, depth = np.meshgrid(np.asarray(lengths, float), np.asarray(depths, float), indexing="ij")
    return np.clip(np.broadcast_to(chance(at.ravel(), depth.ravel()), at.size).reshape(at.shape), 0, 1)


def true_length(chance: Chance, ladder: Ladder) -> float:
    """Return the effective length of a curve, between lengths too; infinite where the longest holds."""
    fine = np.geomspace(ladder.shortest, ladder.longest, 4001)
    means = table_of(chance, fine, ladder.depths).mean(1)
    last = len(fine) - 1 - int((means >= SHARE * means[0])[::-1].argmax())
    return np.inf if last == len(fine) - 1 else float(fine[last])


def drawn(chances: np.ndarray, trials: int, rng) -> np.ndarray:
    """Return right answers of each cell over trials, whose prompts share a haystack: their answers hang together by ALIKE."""
    shared = rng.standard_normal((trials, *[1] * chances.ndim)) * np.sqrt(ALIKE)
    own = rng.standard_normal((trials, *chances.shape)) * np.sqrt(1 - ALIKE)
    return (shared + own < norm.ppf(chances)).sum(0)


def grid_tokens(ladder: Ladder, chances: np.ndarray, every: int, spread: float, most: float, rng) -> float:
    """Return the tokens of the first grid of each `every`-th length of the ladder that is as precise; infinite beyond `most`."""
    places = sorted({*range(0, len(ladder.lengths), every), len(ladder.lengths) - 1})
    counts, done = ladder.nothing(), 0
    for trials in TRIALS:
        tokens = float(trials * len(ladder.depths) * sum(ladder.lengths[place] for place in places))
        if tokens > most:
            break
        counts[0][places] += drawn(chances[places], trials - done, rng)
        counts[1][places] += trials - done
        done = trials
        if crossing(ladder, counts).spread <= spread * (1 + 1e-9):
            return tokens
    return np.inf


def simulated(chance: Chance, ladder: Ladder, rng, limit: int, grids: bool) -> dict[str, float]:
    """Return what reach says of one model, whether that is true, and the tokens of it and of the grids."""
    chances = table_of(chance, ladder.lengths, ladder.depths)

    def ask(name, cell, visit):
        place, depths, trials = cell
        return np.array([drawn(chances[place, list(depths)], trials, rng), np.full(len(depths), trials)])

    *_, end = narrowing(ladder, ["model"], ask, limit, 1.5)
    found, tokens = end.crossings["model"], end.tokens["model"]
    low, high = found.interval
    true = true_length(chance, ladder)
    out = {
        "tokens": tokens,
        "covered": low <= true < high or (np.isinf(true) and np.isinf(high)),
        "precise": found.precise,
    }
    out |= {"error": np.log(found.effective_length / min(true, ladder.longest)), "true": true, "low": low, "high": high}
    if grids:
        step = 1 / ladder.octaves
        as_precise = max(found.spread, ladder.precision**2)
        for name, every in {"octaves": max(1, round(step)), "p": 1, "p2": 2}.items():
            out[name] = grid_tokens(ladder, chances, every, as_precise, MOST * tokens, rng)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--strata", default=",".join(STRATA))
    parser.add_argument("--packs", nargs="*", type=Path, default=[])
    parser.add_argument("--precision", type=float, default=1.25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="Number of the first model: a piece of a longer simulation."
    )
    parser.add_argument("--grids", type=int, default=1000, help="Of so many models of a piece the grids too.")
    parser.add_argument(
        "--out",
        type=Path,
        help="A CSV that lines are added to, a model each; without --models what it holds is printed.",
    )
    given = parser.parse_args()
    curves: dict[str, Callable] = {name: STRATA[name] for name in given.strata.split(",") if name}
    ends = dict.fromkeys(curves, (DEPTHS, SHORTEST, LONGEST))
    for path in given.packs:
        for name, (chance, *rest) in stored(path).items():
            curves[name], ends[name] = lambda rng, chance=chance: chance, tuple(rest)
    lines, began = [], time.perf_counter()
    for name, make in curves.items():
        depths, shortest, longest = ends[name]
        ladder = Ladder(shortest, longest, depths, given.precision)
        limit = LIMIT * shortest
        for number in range(given.first, given.first + given.models):
            rng = np.random.default_rng([given.seed, number, *name.encode()])
            lines.append(
                {"stratum": name, "model": number}
                | simulated(make(rng), ladder, rng, limit, number - given.first < given.grids)
            )
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    table = pd.DataFrame(lines)
    if given.out:
        table.to_csv(given.out, mode="a", header=not given.out.exists(), index=False)
        table = pd.read_csv(given.out)
    print(summary(table).to_string(index=False))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return coverage and tokens, a line a stratum."""
    lines = []
    for name, part in table.groupby("stratum", sort=False):
        line = {
            "stratum": name,
            "models": len(part),
            "covered": part["covered"].mean(),
            "precise": part["precise"].mean(),
        }
        line |= {"tokens": part["tokens"].median()}
        part = part.dropna(subset=["p"]) if "p" in part else part[:0]
        if len(part):
            cheapest = part[["octaves", "p", "p2"]].min(axis=1)
            line |= {"grids": len(part), "of the cheapest grid": (part["tokens"] / cheapest).median()}
            line |= {f"of {each}": (part["tokens"] / part[each]).median() for each in ("octaves", "p", "p2")}
            line |= {"octaves never": np.isinf(part["octaves"]).mean()}
        lines.append(line)
    return pd.DataFrame(lines).round(3)


if __name__ == "__main__":
    main()
