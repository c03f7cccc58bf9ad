"""Options that several commands take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

IMPORTS = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE.py",
        help="Run a Python file that registers mechanisms or positions of yours; repeatable.",
    ),
]


class Once(TyperCommand):
    """A command that takes each option once, those aside that are several: of two values one would be lost in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=[*args])
        for option in given:
            if given.count(option) > 1 and not getattr(option, "multiple", True):
                ctx.fail(f"option {option.opts[0]} is given {given.count(option)} times: allowed is once")
        return super().parse_args(ctx, args)


def import_files(files: Sequence[Path] | None) -> None:
    """Run the files of --import. Raises UserError for one that cannot be run or registers nothing."""
    from ..mechanisms.files import import_file

    for file in files or []:
        import_file(file)
