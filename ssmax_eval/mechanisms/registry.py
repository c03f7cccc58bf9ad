"""Which mechanisms there are: this package's own, one file a family; those of installed packages (entry points of group
`ssmax_eval.mechanisms`); and those that others register, from Python or from files (files.py).
"""

import importlib
import importlib.metadata
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from .mechanism import Mechanism

GROUP = "ssmax_eval.mechanisms"
MECHANISMS: dict[str, type[Mechanism]] = {}  # all of them only once mechanisms() ran
SomeMechanism = TypeVar("SomeMechanism", bound=type[Mechanism])


def register(mechanism: SomeMechanism) -> SomeMechanism:
    """Make a mechanism selectable by its name; the first line of its docstring is what `ssmax-eval mechanisms` prints.

    Raises UserError for a class without a name, and for the name of one of this package's own.
    """
    if not (isinstance(mechanism, type) and issubclass(mechanism, Mechanism)):
        raise UserError(f"mechanism {mechanism!r}: it is no class that derives from ssmax_eval.Mechanism; make it one")
    name = vars(mechanism).get("name")
    if not isinstance(name, str) or not name or any(sign in name for sign in ":,= "):
        raise UserError(f"mechanism {mechanism.__name__}: its name is {name!r}; give it one without spaces and :,=")
    if not is_own(mechanism):
        own_families()  # whose names are taken
        if name in MECHANISMS and is_own(MECHANISMS[name]):
            raise UserError(f"mechanism {name!r}: ssmax_eval has one of this name; give yours another")
    mechanism.summary = (mechanism.__doc__ or "").strip().partition("\n")[0]
    MECHANISMS[name] = mechanism
    return mechanism


def mechanisms() -> dict[str, type[Mechanism]]:
    """Return every mechanism by name, this package's own first."""
    own_families()
    installed()
    return dict(sorted(MECHANISMS.items(), key=lambda each: not is_own(each[1])))


@cache
def own_families() -> None:
    """Import every file beside this one: a family of mechanisms is one."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{package}.{module.name}")


@cache
def installed() -> None:
    """Import what installed packages bring. Raises UserError for one that cannot be imported."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise UserError(
                f"mechanisms of {entry.value!r}: cannot be imported ({type(error).__name__}: {error}); mend or remove the package"
            ) from error


def is_own(each: type[Any]) -> bool:
    """Tell whether a mechanism, or a position, is this package's own."""
    return each.__module__.startswith(f"{__name__.partition('.')[0]}.")
