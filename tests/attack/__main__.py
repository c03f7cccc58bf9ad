"""The campaign: `python -m tests.attack --trials N --seed S`, counts by kind, and of each failure its seed and one line."""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .every import every
from .world import World

TESTS = Path(__file__).resolve().parents[1]


def campaign(
    world: World,
    trials: int,
    seed: int,
    through_cli: bool,
    kinds: list[str],
    first: int = 0,
    seconds: float = 1e9,
) -> list[str]:
    """Run trials and return what is wrong, a line each. first: the number of the first trial. seconds: after which no other begins.

    Trial number i of a seed is the same attack whatever was run before it.
    """
    from .kinds import KINDS
    from .trial import attack

    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    lines = []
    began = time.monotonic()
    chosen = [kind for kind in KINDS if not kinds or kind in kinds]
    for number in range(first, first + trials):
        if time.monotonic() - began > seconds:
            break
        kind = chosen[number % len(chosen)]
        rng = random.Random(f"{seed}/{kind}/{number}")
        folder = world.copy(world.folder.parent / "trial")
        found = attack(KINDS[kind](world, rng, folder, through_cli), folder, through_cli)
        tried[kind] += 1
        if found:
            failed[kind] += 1
            lines.append(f"seed {seed}, trial {number}, {kind}: {found}")
            print(ascii(lines[-1])[1:-1], flush=True)
        shutil.rmtree(folder.parent, ignore_errors=True)
    how = "through the command line" if through_cli else "in forks"
    for kind in chosen:
        print(f"{kind}: tried {tried[kind]}, failed {failed[kind]}")
    print(
        f"all, {how}: tried {tried.total()} (from {first}), failed {failed.total()}, {time.monotonic() - began:.0f} s"
    )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to go on with a campaign")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no trial after so many")
    parser.add_argument("--cli", action="store_true", help="each command a process of its own")
    parser.add_argument("--kinds", default="", help="some kinds alone, with commas")
    parser.add_argument("--every", metavar="FILES", help="instead: every value of the files whose path holds this text")
    given = parser.parse_args()
    kinds = [kind for kind in given.kinds.split(",") if kind]
    with tempfile.TemporaryDirectory(prefix="attack-") as made:
        world = World(Path(made))
        if given.every is not None:
            return int(bool(every(world, given.every)))
        return int(bool(campaign(world, given.trials, given.seed, given.cli, kinds, given.first, given.seconds)))


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    import conftest  # noqa: F401  (offline, one thread)
    from faulty import load_all

    load_all()
    sys.exit(main())
