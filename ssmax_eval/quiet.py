"""Out of the terminal's way, for the command line alone: our notes at once, what libraries warn of in one line at the end."""

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .progress import LIBRARY_BARS, aside

LIBRARIES = ("transformers", "huggingface_hub", "torch")  # whose loggers print by themselves
LONGEST = 160  # characters of the warning that is quoted


def quiet_libraries() -> None:
    """Silence transformers, huggingface_hub, tokenizers and matplotlib; called before any of them is imported.

    Where a command gathers their warnings, they go there.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ["MPLBACKEND"] = "agg"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", LIBRARY_BARS)  # our own is shown all the same
    # of torch's store, whose pages of C++ frames say what we say in a line: the process that holds it is gone
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch  # noqa: F401  (it sets up its loggers when it is imported)
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    if any(isinstance(handler, Messages) for handler in logging.getLogger().handlers):
        for name in LIBRARIES:
            library = logging.getLogger(name)
            library.handlers, library.propagate = [], True
            library.setLevel(logging.WARNING)


class Messages(logging.Handler):
    """Where a command's log goes: notes of this package are printed, each once; what libraries log and warn of is gathered.

    quiet: neither. verbose: libraries' messages are printed too, as they come.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.quiet = self.verbose = False
        self.noted: set[str] = set()
        self.gathered: list[tuple[str, str]] = []  # library and message

    def emit(self, record: logging.LogRecord) -> None:
        message, library = " ".join(record.getMessage().split()), record.name.partition(".")[0]
        if library != __package__:
            self.gather(library, message)
        elif message not in self.noted and not self.quiet:
            self.noted.add(message)
            say(message)

    def showwarning(self, message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        """Take a Python warning, in the place of warnings.showwarning."""
        self.gather(library_of(filename), " ".join(f"{category.__name__}: {message}".split()))

    def gather(self, library: str, message: str) -> None:
        self.gathered.append((library, message))
        if self.verbose:
            say(f"ssmax-eval: {library}: {message}")

    def summarise(self) -> None:
        """Say in one line what was gathered."""
        if self.gathered and not (self.quiet or self.verbose):
            count, first = len(self.gathered), self.gathered[0][1]
            counts = Counter(library for library, _ in self.gathered)
            by_library = ", ".join(f"{library} {number}" for library, number in counts.items())
            quoted = first if len(first) <= LONGEST else f"{first[:LONGEST]}..."
            said = f"{count} warning{'s' if count > 1 else ''} of libraries ({by_library})"
            say(f'ssmax-eval: note: {said}: first: "{quoted}"; --verbose shows all')


def library_of(filename: str) -> str:
    """Return the package that a warning's file is of; `python` for one that is of no installed package."""
    _, found, rest = Path(filename).as_posix().rpartition("site-packages/")
    return rest.partition("/")[0].removesuffix(".py") if found else "python"


def say(line: str) -> None:
    with aside():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def gathered() -> Iterator[Messages]:
    """Run a command with its messages and its libraries' going to the Messages that is yielded; all comes back afterwards."""
    messages, root = Messages(), logging.getLogger()
    libraries = [(each, vars(each).copy()) for each in map(logging.getLogger, LIBRARIES)]
    bars = os.environ.get("TQDM_DISABLE")
    with warnings.catch_warnings():
        warnings.showwarning = messages.showwarning
        root.addHandler(messages)
        try:
            yield messages
        finally:
            root.removeHandler(messages)
            for library, before in libraries:
                library.handlers, library.propagate = before["handlers"], before["propagate"]
                library.setLevel(before["level"])
            os.environ.pop("TQDM_DISABLE", None)
            os.environ.update({} if bars is None else {"TQDM_DISABLE": bars})
