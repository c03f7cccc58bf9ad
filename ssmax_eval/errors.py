"""The one exception a user can cause, and what they may have meant."""

import difflib
from collections.abc import Iterable, Iterator


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


def refuse_half_characters(what: str, text: str) -> None:
    """Raise UserError for a text that no file, row or tokenizer can hold: one with half of a character, as `\\ud800` writes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{what} {text!r}: it holds half a character (a surrogate); write the character itself"
        ) from None
