"""A command killed at random moments, over and over, against the same command undisturbed: python benchmarks/kills.py [needle|reach]

Each kill is SIGKILL or SIGTERM to a process of its own, at a moment drawn between its start and when the undisturbed one ended, most
of them after its imports. The command is then given again, and killed again, until it ends by itself; then another round begins.
Its rows have to be the undisturbed one's byte for byte, and what it prints the same. Printed: kills that came before it ended,
those that fell between its first row and its last, and what differs. `--rounds` and `--seed` repeat or go on with a campaign.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
GRID = ["--context-lengths", "256,512,1024,2048", "--depth-percents", "0,25,50,75,100", "--trials", "4"]
COMMANDS = {
    "needle": ["needle", "--model", "softmax-bible-2m", "--model", "ssmax-bible-2m", *GRID, "--no-report"],
    "attention": ["attention", "--model", "softmax-bible-2m", "--model", "ssmax-bible-2m", *GRID, "--no-report"],
    "reach": ["reach", "--context-lengths", "256,2048", "--precision", "2", "--page", "page.html"],
}
COMMON = ["--output-path", "out", "--dtype", "float32", "--device", "cpu", "--json"]


def stored(folder: Path) -> dict[str, list[bytes]]:
    """Return the lines of every file of rows, in order, by the file's path."""
    # os.walk and not rglob: folders come and go while it looks
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names if name.startswith("rows")]
    return {str(file.relative_to(folder)): sorted(file.read_bytes().splitlines()) for file in files}


def lines(folder: Path) -> int:
    return sum(map(len, stored(folder).values()))


def run(words: list[str], folder: Path, at: float | None = None, how: signal.Signals = signal.SIGKILL) -> list[float]:
    """Run a command, killed after `at` seconds; return when its first row was there (infinite for never) and when it ended.

    Where it ended by itself: raises RuntimeError for another exit code than 0.
    """
    first, began, before = float("inf"), time.monotonic(), lines(folder)
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        child = subprocess.Popen([sys.executable, "-m", "ssmax_eval", *words], cwd=folder, stdout=out, stderr=err)
        killed = False
        while child.poll() is None:
            passed = time.monotonic() - began
            if at is not None and passed >= at and not killed:
                child.send_signal(how)
                killed = True
            if first == float("inf") and lines(folder) > before:
                first = passed
            time.sleep(0.02)
    if child.returncode and not killed:
        raise RuntimeError(f"exit code {child.returncode}: {(folder / 'stderr').read_text()[-500:]}")
    if killed and (child.returncode == 0 or b"Traceback" in (folder / "stderr").read_bytes()):
        killed = child.returncode != 0
        if killed and "ssmax_eval" in (folder / "stderr").read_text():
            print(f"  a traceback: {(folder / 'stderr').read_text()[-500:]}", flush=True)
    return [first, time.monotonic() - began, float(killed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS, nargs="?", default="needle")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no other round after so many")
    given = parser.parse_args()
    words, rng = [*COMMANDS[given.command], *COMMON], random.Random(given.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        first, last, _ = run(words, whole)
        rows = stored(whole)
        run(words, whole)  # with all rows there: what it prints of them
        printed = (whole / "stdout").read_bytes()
        print(
            f"{given.command}: first row after {first:.1f} s, end after {last:.1f} s, {lines(whole)} rows", flush=True
        )
        kills = inside = rounds = wrong = 0
        by_signal = dict.fromkeys(SIGNALS, 0)
        while kills < given.kills and time.monotonic() - began < given.seconds:
            folder = Path(made) / f"round-{rounds}"
            folder.mkdir()
            ended = False
            while not ended:
                how = rng.choice(SIGNALS)
                at = rng.uniform(0.6 * first, last) if kills < given.kills else None
                _, _, killed = run(words, folder, at, how)
                ended = not killed
                kills += int(killed)
                by_signal[how] += int(killed)
                inside += int(bool(killed) and 0 < lines(folder) < lines(whole))
            rounds += 1
            run(words, folder)
            same = stored(folder) == rows, (folder / "stdout").read_bytes() == printed
            wrong += not all(same)
            if not all(same):
                print(
                    f"  round {rounds}: rows {'alike' if same[0] else 'UNLIKE'}, answer {'alike' if same[1] else 'UNLIKE'}"
                )
        told = ", ".join(f"{count} {how.name}" for how, count in by_signal.items())
        print(
            f"{given.command}: {kills} kills ({told}; {inside} amid rows), {rounds} rounds, {wrong} unlike", flush=True
        )


if __name__ == "__main__":
    main()
