"""Give a function the parameters of others: commands and Python functions that take the same words."""

import inspect
from collections.abc import Callable
from typing import Any


def takes(
    *sources: Callable[..., Any], without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command that takes **given have the options of these functions, in their order."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        every = {name: p for source in sources for name, p in inspect.signature(source).parameters.items()}
        kept = [parameter for name, parameter in every.items() if name not in without]
        command.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
        return command

    return give
