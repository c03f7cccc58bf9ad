"""Files of a user's own that register mechanisms or positions, and where code that is not this package's comes from."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import UserError
from ..own_file import file_of, run_file
from ..position.bias import BIASES, biases
from .registry import MECHANISMS, is_own, own_families

Registered = dict[str, type[Any]]
TABLES: tuple[Registered, ...] = (cast(Registered, MECHANISMS), cast(Registered, BIASES))


@dataclass(frozen=True)
class Imported:
    """A file as it was when it was imported: its path, a hash of its bytes, and what it registered, by table."""

    path: Path
    sha256: str
    registered: tuple[Registered, ...]


IMPORTED: dict[str, Imported] = {}  # by the name of its module


def import_file(file: str | Path) -> None:
    """Run a Python file that registers mechanisms or positions; what it registered before, as it was then, goes.

    Raises UserError if it cannot be run, registers nothing, or takes the name of another file's; nothing is registered then.
    """
    path = Path(file)
    if path.is_dir():
        raise UserError(f"import {str(file)!r}: it is a directory; give a Python file that registers a mechanism")
    if not path.is_file():
        raise UserError(f"import {str(file)!r}: there is no such file; give a Python file that registers a mechanism")
    path = path.resolve()
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    own_families()
    biases()
    kept = [dict(table) for table in TABLES]
    try:
        forget(path)
        before = [dict(table) for table in TABLES]
        module = f"ssmax_eval_imported_{hashlib.sha256(f'{path} {sha256}'.encode()).hexdigest()[:8]}_{path.stem}"
        if module in IMPORTED and module in sys.modules:
            for table, registered in zip(TABLES, IMPORTED[module].registered, strict=True):
                table.update(registered)
        else:
            run_file(path, content, module)
        new = tuple(
            {name: each for name, each in table.items() if old.get(name) is not each}
            for table, old in zip(TABLES, before, strict=True)
        )
        if not any(new):
            raise UserError(f"import {str(file)!r}: it registers no mechanism and no position; see ssmax_eval.register")
        for name in (name for registered, old in zip(new, before, strict=True) for name in registered if name in old):
            raise UserError(f"import {str(file)!r}: {name!r} is registered already; give one of the two another name")
        IMPORTED[module] = Imported(path, sha256, new)
    except BaseException as error:
        for table, old in zip(TABLES, kept, strict=True):
            table.clear()
            table.update(old)
        if isinstance(error, UserError):
            raise
        raise UserError(f"import {str(file)!r}: it cannot be run ({type(error).__name__}: {error})") from error


def forget(path: Path) -> None:
    """Take out what a file registered earlier."""
    for each in IMPORTED.values():
        for table, registered in zip(TABLES, each.registered, strict=True):
            for name, kind in registered.items():
                if each.path == path and table.get(name) is kind:
                    del table[name]


def imported_files() -> list[str]:
    """Return the files whose mechanisms or positions are registered now, for other processes to import them too."""
    now = {id(each) for table in TABLES for each in table.values()}
    used = [
        each for each in IMPORTED.values() if now & {id(kind) for table in each.registered for kind in table.values()}
    ]
    return [*dict.fromkeys(str(each.path) for each in used)]


def source_of(each: type[Any]) -> tuple[str, str] | None:
    """Return where a mechanism or position of somebody else's comes from, and a sha256 of that file.

    An imported file's name, or the name of a module that is installed. None for this package's own, what comes from no file, and what
    was edited since Python imported it.
    """
    if is_own(each):
        return None
    if each.__module__ in IMPORTED:
        known = IMPORTED[each.__module__]
        return known.path.name, known.sha256
    found = file_of(each)
    return None if found is None else (each.__module__, found[1])
