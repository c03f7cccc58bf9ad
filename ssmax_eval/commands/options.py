"""Options that several commands take."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from ..errors import UserError

IMPORTS = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE.py",
        help="Run a Python file that registers mechanisms or positions of yours; repeatable.",
    ),
]


class Once(TyperCommand):
    """A command that takes each option once, those aside that are several: of two values one would be lost in silence.

    No path may be empty: Python takes that for the current folder.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        values, _, given = self.make_parser(ctx).parse_args(args=[*args])
        taken = inspect.signature(self.callback).parameters if self.callback else {}
        for option in given:
            if given.count(option) > 1 and not getattr(option, "multiple", True):
                ctx.fail(f"option {option.opts[0]} is given {given.count(option)} times: allowed is once")
            texts = values.get(option.name)
            texts = texts if isinstance(texts, list | tuple) else [texts]
            if "" in texts and option.name in taken and is_path(taken[option.name].annotation):
                raise UserError(f"{option.opts[0]} '': it is empty; give a path, or leave it out")
        return super().parse_args(ctx, args)


def is_path(kind: Any) -> bool:
    """Tell whether an annotation is that of a path, of several, or of one that can be left out."""
    return kind is Path or any(map(is_path, get_args(kind)))


def import_files(files: Sequence[Path] | None) -> None:
    """Run the files of --import. Raises UserError for one that cannot be run or registers nothing."""
    from ..mechanisms.files import import_file

    for file in files or []:
        import_file(file)
