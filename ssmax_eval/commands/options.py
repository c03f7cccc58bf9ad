"""Options that several commands take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

IMPORTS = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE.py",
        help="Run a Python file that registers mechanisms or positions of yours; repeatable.",
    ),
]


def import_files(files: Sequence[Path] | None) -> None:
    """Run the files of --import. Raises UserError for one that cannot be run or registers nothing."""
    from ..mechanisms.files import import_file

    for file in files or []:
        import_file(file)
