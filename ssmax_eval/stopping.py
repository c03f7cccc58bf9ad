"""How a command ends when a user or a scheduler stops it: in order, with the exit code that shells know."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import origins

INTERRUPTED = 130  # what typer makes of Ctrl-C
STOPPED = 128 + signal.SIGTERM  # as a shell says it


def interruption_in(error: BaseException | None) -> int | None:
    """Return the exit code of the interruption that an error is, or comes from: libraries make errors of their own of it; else None."""
    for each in origins(error):
        if isinstance(each, KeyboardInterrupt):
            return INTERRUPTED
        if isinstance(each, SystemExit) and each.code == STOPPED:
            return STOPPED
    return None


@contextmanager
def stoppable() -> Iterator[None]:
    """End a block in order when the process is told to terminate, as launchers and schedulers do: what it holds is let go of."""
    if threading.current_thread() is not threading.main_thread():  # no other can be told
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise SystemExit(STOPPED)

    def again(lost: Any) -> None:
        """Send a signal once more whose exception fell into a destructor, where Python drops what is raised; in here too."""
        number = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(lost.exc_type)
        if number is None:
            hook(lost)
            return
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, stop)
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()

    before, hook = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
