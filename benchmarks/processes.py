"""Time one process against two, and kill them at random moments: python benchmarks/processes.py [--kill N] [OPTION OF needle]...

Whole commands on the bundled pair's default grid, one after the other: one process on one thread, one on two, two on one each
(torchrun). Prints the seconds of the command, the seconds of its runs without the start, and the ratio of both.

With --kill N: one process or two, drawn each time, are killed at N random moments, one rank alone or all at once; the same
command goes on. Whenever a run is finished, its rows are compared with an undisturbed one's, byte by byte.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def start(count: int, threads: int, folder: Path, options: list[str]) -> list[subprocess.Popen[bytes]]:
    """Start the command in `count` processes, as srun does: all of them our own to kill."""
    words = [sys.executable, "-m", "ssmax_eval", "needle", "--no-report", "--output-path", str(folder), *options]
    told = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random.randrange(20000, 30000))}
    common = {**os.environ, "OMP_NUM_THREADS": str(threads), **(told if count > 1 else {})}
    return [
        subprocess.Popen(
            words,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else common,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(count)
    ]


def rows(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("rows.jsonl")}


def timed(folder: Path, options: list[str]) -> None:
    found = {}
    for name, (count, threads) in WAYS.items():
        began = time.perf_counter()
        assert {process.wait() for process in start(count, threads, folder / name, options)} == {0}
        whole = time.perf_counter() - began
        runs = sum(json.loads(file.read_text())["seconds"] for file in (folder / name).rglob("run.json"))
        found[name] = (whole, runs)
    for name, (whole, runs) in found.items():
        first, second = found["1 process, 1 thread"]
        print(f"{name}: command {whole:.1f} s ({first / whole:.2f}x), runs {runs:.1f} s ({second / runs:.2f}x)")
    same = rows(folder / "1 process, 1 thread") == rows(folder / "2 processes, 1 thread each")
    print(f"rows of one process and of two, byte by byte: {'the same' if same else 'NOT the same'}")


def killed(folder: Path, options: list[str], kills: int) -> None:
    began = time.perf_counter()
    assert {process.wait() for process in start(1, 1, folder / "whole", options)} == {0}
    longest = time.perf_counter() - began
    expected, done, finished, told = rows(folder / "whole"), 0, 0, {1: 0, 2: 0}
    rng = random.Random(0)
    out = folder / "killed"
    while True:
        last = done == kills  # finish what is left undisturbed
        count = rng.choice((1, 2))
        processes = start(count, 1, out, options)
        if not last:
            deadline = time.perf_counter() + rng.uniform(0, longest)
            while time.perf_counter() < deadline and any(process.poll() is None for process in processes):
                time.sleep(0.01)
            for process in rng.choice([processes, [rng.choice(processes)]]):
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
        codes = [process.wait() for process in processes]
        if set(codes) == {0}:
            finished += 1
            assert rows(out) == expected, f"other rows after {done} kills: {out}"
            leftover = [
                file for file in out.rglob("*") if file.is_file() and file.name not in ("rows.jsonl", "run.json")
            ]
            assert not leftover, leftover
            if last:
                break
            shutil.rmtree(out)
        else:
            assert not last, codes
            assert set(codes) <= {0, 2, -signal.SIGKILL}, codes
            done += 1
            told[count] += 1
    print(
        f"killed {done} times ({told[1]} with one process, {told[2]} with two); finished {finished} times, the same rows each time"
    )


if __name__ == "__main__":
    given = sys.argv[1:]
    number = int(given[1]) if given[:1] == ["--kill"] else 0
    with tempfile.TemporaryDirectory() as place:
        if number:
            killed(Path(place), given[2:], number)
        else:
            timed(Path(place), given)
