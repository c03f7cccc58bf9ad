"""What a terminal would obey instead of show, written as its code: the one place where text of data is made harmless."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# C0 and C1 controls but tab and newline, marks and overrides of direction, what has no width, separators of lines. Spelled as
# JSON spells them, so that JSON that holds one stays JSON
OBEYED = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0x61C,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
]
CODES = {code: f"\\u{code:04x}" for code in [*OBEYED, 0xFEFF] if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    """Return text with each character that a terminal obeys as its code: an escape becomes `\\u001b`."""
    return text.translate(CODES)


class PrintableStream:
    """A stream that writes printable text into another, and is that other in all else."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        return self.inner.write(printable(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class ErrorStream(PrintableStream):
    """stderr, printable: where it takes no more, what is said there is lost, and the command goes on."""

    def write(self, text: str) -> int:
        with self.or_nowhere():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self.or_nowhere():
            self.inner.flush()

    @contextmanager
    def or_nowhere(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            nowhere(self.inner)


def nowhere(stream: Any) -> None:
    """Let a stream that takes no more write into nothing, or what is left in its buffer would fail once more when Python ends."""
    with suppress(OSError, ValueError):
        device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(device, stream.fileno())
        os.close(device)


def inner(stream: Any) -> Any:
    """Return the stream below a PrintableStream, any other itself: for who moves the cursor, its texts made printable before."""
    return stream.inner if isinstance(stream, PrintableStream) else stream


@contextmanager
def streams(stdout: Any, stderr: Any) -> Iterator[None]:
    """Run a block with these as sys.stdout and sys.stderr."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = stdout, stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def printable_streams() -> Any:
    """Run a block with all that it prints printable."""
    return streams(PrintableStream(inner(sys.stdout)), ErrorStream(inner(sys.stderr)))


def plain_streams() -> Any:
    """Run a block with stdout and stderr as they were before: for another program's command line."""
    return streams(inner(sys.stdout), inner(sys.stderr))


def occupy() -> None:
    """Give each standard stream that was closed a place: else the next file has its number, and gets what a library prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the first number that is free
