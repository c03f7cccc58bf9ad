"""How far a command is, and how long the rest takes: one bar on a terminal, a line now and then where there is none."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from .printable import inner, printable

LIBRARY_BARS = "libraries"  # TQDM_DISABLE where only the bars of libraries are off
OFTEN, SELDOM = 0.2, 30.0  # seconds between two states of the bar, and between two lines
EARLY, SOON = 0.01, 60.0  # part of the work and seconds before which the rest is not told: the first forwards are slow


def nothing() -> float:
    return 0.0


class Progress:
    """The work of a whole command, told in parts.

    total: all of it, in a unit that takes about as long everywhere, such as floating-point operations. done_elsewhere:
    returns what other processes have done of it. TQDM_DISABLE=1 in the environment shows nothing.
    """

    def __init__(self, total: float, done_elsewhere: Callable[[], float] = nothing) -> None:
        self.total, self.done_elsewhere = total, done_elsewhere
        self.done = 0.0  # here
        self.what = self.said_of = ""
        self.quarter = 0
        self.started = self.said = time.monotonic()
        self.shown = total > 0 and os.environ.get("TQDM_DISABLE", "") in ("", LIBRARY_BARS)
        self.bar: Any = None
        if self.shown and sys.stderr.isatty():
            from tqdm import tqdm  # late: it reads TQDM_DISABLE when it is imported

            self.bar = tqdm(
                total=1.0, bar_format="{percentage:3.0f}%|{bar:20}| {desc}", file=inner(sys.stderr), leave=False,
                disable=False, dynamic_ncols=True,
            )  # fmt: skip

    def advance(self, work: float, what: str = "", figures: str = "") -> None:
        """Count work that is done. what: whose it was, a model and its setting; figures: what else there is to say, such as a loss."""
        self.done += work
        if not self.shown:
            return
        now = time.monotonic()
        part = self.part()
        is_new = what != self.said_of or int(4 * part) > self.quarter
        if now - self.said < (OFTEN if self.bar is not None else SELDOM) and not is_new:
            return
        self.said_of, self.quarter, self.said = what, int(4 * part), now
        left = self.left(now)
        words = ", ".join(filter(None, [what, figures])) + (f"; {duration(left)} left" if left else "")
        if self.bar is not None:
            self.bar.n = part
            self.bar.set_description_str(printable(words))
        else:
            print(f"ssmax-eval: {100 * part:.0f}% of the work; {words}", file=sys.stderr, flush=True)

    def skip(self, work: float) -> None:
        """Leave work out that turns out to be done already, in an earlier run."""
        self.total -= work

    def part(self) -> float:
        """Return the part of the work that is done, here and elsewhere, 0 to 1."""
        return min(1.0, (self.done + self.done_elsewhere()) / self.total) if self.total > 0 else 1.0

    def left(self, now: float) -> float | None:
        """Return the seconds that the rest takes if it goes on as until now; None where that is too early to tell."""
        part, spent = self.part(), now - self.started
        return spent * (1 - part) / part if part >= EARLY or (part and spent >= SOON) else None

    def close(self) -> None:
        """Take the bar away."""
        self.shown = False
        if self.bar is not None:
            self.bar.close()


@contextmanager
def said_after(seconds: float, note: str) -> Iterator[None]:
    """Say what a block waits for if it takes so long."""
    timer = threading.Timer(seconds, logging.getLogger(__name__).warning, ["ssmax-eval: note: %s", note])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def aside() -> AbstractContextManager[Any]:
    """Run a block that prints to stderr beside a bar: it is taken away before and drawn again afterwards."""
    tqdm = sys.modules.get("tqdm")  # no bar where nobody imported it
    return nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode(inner(sys.stderr))


def duration(seconds: float) -> str:
    """Say seconds in two digits of the largest unit that is not below 1."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(1, round(seconds))} s"
