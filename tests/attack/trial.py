"""One attack: commands run one after the other, some of them disturbed, and what is wrong with how they ended."""

import contextlib
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path

LONGEST = 60  # seconds of a command
MEMORY = 4 * 2**20  # KiB that a command may take
LARGEST = 12 * 2**30  # bytes of addresses that it can have at all, for the sake of whoever else works here
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
# what a process that was sent a signal may end with: what a shell says, or Python's way to say that it was killed
ENDS = {number: {0, 2, 128 + number, -number} for number in SIGNALS}
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
MARK = "<script id=attack"  # of what must not stand in a page as it is
PAYLOAD = f"\x1b[31m\x07\u202e\r{MARK}>alert(1)</script>"


@dataclass
class Step:
    """A command. stop: a signal and the seconds after which it is sent. largest: bytes of any file that it writes."""

    words: list[str]
    stop: tuple[signal.Signals, float] | None = None
    largest: int | None = None
    stdout: str | None = None  # a path in place of what is read
    closed: tuple[int, ...] = ()  # of the streams 0, 1, 2
    env: dict[str, str] = field(default_factory=dict)
    must: int | None = None  # the exit code that it has to end with
    limits: dict[int, int] = field(default_factory=dict)  # of the system, as resource has them
    gone: bool = False  # it stands in a folder that is no more


@dataclass
class Attack:
    """Steps in a folder, and what is checked of the folder afterwards: it returns what is wrong, or nothing.

    at_once: of the steps, how many begin together; the others follow.
    """

    steps: list[Step]
    after: Callable[[Path], str | None] = lambda folder: None
    at_once: int = 1


@dataclass
class Ended:
    code: int
    out: str
    err: str
    seconds: float
    memory: int  # KiB


@dataclass
class Running:
    step: Step
    child: int
    out: Path
    err: Path
    started: float


def run(step: Step, folder: Path, through_cli: bool) -> Ended:
    """Run a command in a folder, in a fork of this process or through the command line."""
    return end(begin(step, folder, through_cli))


def begin(step: Step, folder: Path, through_cli: bool, name: str = "") -> Running:
    """Begin a command; it is about to run when this returns. name: of the files that it prints to."""
    out, err = folder.parent / f"out{name}", folder.parent / f"err{name}"
    ready, told = os.pipe()
    started = time.monotonic()
    if (child := os.fork()) == 0:
        os.close(ready)
        child_of(step, folder, through_cli, out, err, told)
    os.close(told)
    os.read(ready, 1)  # until it is about to begin
    os.close(ready)
    return Running(step, child, out, err, started)


def end(running: Running) -> Ended:
    """Wait for a command to end, and stop it if its step says so, or if it takes too long."""
    step, child, out, err, started = (getattr(running, each.name) for each in fields(running))
    sent = False
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        passed = time.monotonic() - started
        if step.stop and not sent and passed > step.stop[1]:
            sent = True
            os.kill(child, step.stop[0])
        if passed > LONGEST + 5:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    texts = [path.read_text(errors="backslashreplace") if path.is_file() else "" for path in (out, err)]
    return Ended(os.waitstatus_to_exitcode(status), *texts, time.monotonic() - started, usage.ru_maxrss)


def child_of(step: Step, folder: Path, through_cli: bool, out: Path, err: Path, told: int) -> None:
    """Be the child: set up what the step says, begin, and never return."""
    code = 70
    try:
        os.chdir(folder)
        os.environ.update(step.env)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(step.stdout or out, flags), 1)
        os.dup2(os.open(err, flags), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in step.closed:
            os.close(number)
        if step.gone:
            (folder / "gone").mkdir()
            os.chdir(folder / "gone")
            (folder / "gone").rmdir()
        for number, limit in ({resource.RLIMIT_AS: LARGEST} | step.limits).items():
            resource.setrlimit(number, (limit, limit))
        if step.largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (step.largest, step.largest))
        for number in (*SIGNALS[:3], signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it
        if through_cli:
            os.set_inheritable(told, False)
            os.write(told, b"1")
            ours = {
                "PYTHONPATH": str(Path(__file__).resolve().parents[2])
            }  # whatever is installed, and wherever it stands
            os.execve(sys.executable, [sys.executable, "-m", "ssmax_eval", *step.words], os.environ | ours)
        from ssmax_eval.cli import main

        # as Python begins with streams that are closed
        sys.stdout, sys.stderr = (
            None if number in step.closed else os.fdopen(number, "w", encoding="utf-8", errors=errors, buffering=1)
            for number, errors in ((1, "strict"), (2, "backslashreplace"))
        )
        os.write(told, b"1")
        code = ended(main, step.words)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(main: Callable[[list[str]], None], words: list[str]) -> int:
    """Return the exit code that a command ends with, as Python would make of it."""
    code = 0
    try:
        main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    return code


def wrong(step: Step, ended: Ended) -> str | None:
    """Say in one line what is wrong with how a command ended; None for nothing."""
    said = ended.err + ended.out
    before = (step.stop and "KeyboardInterrupt" in ended.err) or "Fatal Python error: init_" in ended.err
    if before and "ssmax_eval" not in ended.err:
        return None  # before Python had come to us; with four files open at most it does not even begin
    if ended.seconds > LONGEST:
        return f"a hang of {ended.seconds:.0f} s"
    if "Traceback (most recent call last)" in said or "panicked at" in said:
        return f"a traceback: {traced(said)}"
    allowed = {step.must} if step.must is not None else {0, 2} | (ENDS[step.stop[0]] if step.stop else set())
    if ended.code not in allowed:
        return f"exit code {ended.code}: {(ended.err.strip().splitlines() or [''])[-1][:200]}"
    if (
        ended.code == 2
        and 2 not in step.closed
        and step.largest is None  # which stderr has too
        and not any(
            line.startswith(("ssmax-eval: error: ", "lm-eval: error: ", "lm-eval run: error: "))
            for line in ended.err.splitlines()
        )
    ):
        return f"exit code 2 without a line that says why: {ended.err[-200:]!r}"
    if ended.memory > MEMORY:
        return f"{ended.memory / 2**20:.1f} GiB of memory"
    # what lm-eval prints is its own
    if step.words[:1] != ["lm-eval"] and (found := CONTROLS.search(ended.out + ended.err)):
        return f"a control character on the terminal: {found[0]!r}"
    return None


def traced(said: str) -> str:
    """Return what stands before the first traceback, the places in it that are ours, and what it ends with."""
    lines = said.splitlines()
    start = next((i for i, line in enumerate(lines) if "Traceback (most" in line or "panicked at" in line), 0)
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines) - 1)
    places = [line.strip().rpartition("/")[2] for line in lines[start:end] if line.startswith("  File")]
    before = lines[start - 1][-120:] if start else ""
    return " | ".join(filter(None, [before, *places[-4:], lines[end][:200]]))


def pages_in(folder: Path) -> dict[Path, str]:
    """Return the pages in a folder, and what they hold."""
    pages = folder.rglob("*.html")
    # Path.is_file raises for a link to a name that is too long
    return {page: page.read_text(errors="replace") for page in pages if os.path.isfile(page) and not page.is_symlink()}


def wrong_in(folder: Path, before: dict[Path, str]) -> str | None:
    """Say what is wrong with what commands left in a folder. before: pages that the attack put there."""
    for page, text in pages_in(folder).items():
        if before.get(page) != text:
            if not text.rstrip().endswith("</html>"):
                return f"a half page: {page.name}"
            if MARK in text:
                return f"HTML that is not escaped in {page.name}"
    return None


def attack(drawn: Attack, folder: Path, through_cli: bool) -> str | None:
    """Run an attack and return what is wrong, in one line; None for nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    before = pages_in(folder)
    first = [begin(step, folder, through_cli, str(i)) for i, step in enumerate(drawn.steps[: drawn.at_once])]
    ends = chain(map(end, first), (run(step, folder, through_cli) for step in drawn.steps[drawn.at_once :]))
    found = None
    for number, (step, ended) in enumerate(zip(drawn.steps, ends, strict=True)):
        how = {"env": step.env, "limits": step.limits, "gone": step.gone, "closed": step.closed, "stop": step.stop}
        told = "".join(f" {name} {value}" for name, value in how.items() if value)
        if said := wrong(step, ended):
            found = found or f"{said} (step {number}: {' '.join(map(ascii, step.words))[:300]}{told})"
        if found and number + 1 >= drawn.at_once:  # those that began are waited for
            return found
    return wrong_in(folder, before) or drawn.after(folder)


def rows_in(folder: Path) -> dict[str, list[str]]:
    """Return the lines of rows that each run below a folder has, sorted, but for what a clock decides."""
    found = {}
    for file in folder.rglob("rows.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[f"{file.parent.parent.name}/{file.parent.name}"] = sorted(json.dumps(row, sort_keys=True) for row in rows)
    return found
