"""The one exception a user can cause, and what they may have meant."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# what Python raises where a value is of another kind, larger or longer than the code that reads it takes
OF_A_VALUE = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


class UserError(ValueError):
    """Bad input, said in one line: what, the value, what is allowed, what to do. The CLI exits with 2."""


def nearest(given: str, allowed: Iterable[str], alike: float = 0.6) -> str:
    """Return `; did you mean X?` for what is spelled nearly as one of those allowed; nothing where none is. alike: 0 to 1."""
    near = difflib.get_close_matches(given, list(allowed), 1, alike)
    return f"; did you mean {near[0]}?" if near else ""


def origins(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it comes from, each once: one may come from itself."""
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def failed_import(error: BaseException) -> str | None:
    """Return the library whose own module was being imported when an error was raised; None where it was not in an import."""
    at, found = error.__traceback__, None
    while at is not None:
        name = str(at.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        own = name in (__name__.partition(".")[0], "__main__")
        if at.tb_frame.f_code.co_name == "<module>" and not own:
            found = found or name
        at = at.tb_next
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory left: Python's, a GPU's, torch's on a processor, or the system's."""
    kinds, text = (each.__name__ for each in type(error).__mro__), str(error)
    signs = ("out of memory", "DefaultCPUAllocator", "not enough memory", "Cannot allocate memory", "bad_alloc")
    return not {"MemoryError", "OutOfMemoryError"}.isdisjoint(kinds) or any(sign in text for sign in signs)


def refuse_half_characters(what: str, text: str) -> None:
    """Raise UserError for a text that no file, row or tokenizer can hold: one with half of a character, as `\\ud800` writes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{what} {text!r}: it holds half a character (a surrogate); write the character itself"
        ) from None


def first_line(error: BaseException) -> str:
    """Return an error's kind and the start of its text, on one line."""
    text = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in text:
        return "the shapes of its weights are not those of its config"
    if sys.flags.optimize > 1 and "docstring" in text:
        return "PYTHONOPTIMIZE=2 takes the docstrings away that transformers reads; unset it"
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Say in one line what goes wrong while values are read that others wrote, which may be of any kind.

    what: whose they are, which begins the line. The place in our code is told too, as the fault may be there. Raises UserError.
    """
    try:
        yield
    except (UserError, OSError):  # some errors of input and output are of both kinds
        raise
    except OF_A_VALUE as error:
        raise UserError(
            f"{what}: it holds a value that cannot be used ({first_line(error)}; read in {place_of(error)}); "
            "mend it, or tell us if it is right"
        ) from error


def place_of(error: BaseException) -> str:
    """Return the last place in our own code that an error came by, as `module, line N`."""
    at, found = error.__traceback__, ""
    while at is not None:
        name = str(at.tb_frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] == __name__.partition(".")[0]:
            found = f"{name}, line {at.tb_lineno}"
        at = at.tb_next
    return found
