"""A page's tables as files: CSV to compute with, LaTeX to print."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ..disk import whole
from ..errors import UserError
from .section import Found, Table

LONGEST = 80  # characters of a name


def save_tables(found: Iterable[Found], folder: Path) -> list[Path]:
    """Write every table of a page as CSV and as LaTeX (booktabs) into a folder, numbered in their order, and return the paths."""
    tables = [each for one in found for each in (*one.tables(), *one.more_tables()) if isinstance(each, Table)]
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, table in enumerate(tables, 1):
            frame = pd.DataFrame([list(line) for line in table.lines], columns=list(table.columns), dtype=object)
            name = f"{number:02}-{re.sub(r'[^a-z0-9]+', '-', table.title.lower()).strip('-')[:LONGEST]}"
            texts = {
                ".csv": frame.to_csv(index=False),
                ".tex": frame.to_latex(index=False, escape=True, caption=escaped(table.title), position="tb"),
            }
            for kind, text in texts.items():
                with whole(folder / f"{name}{kind}") as half:
                    half.write_text(text, encoding="utf-8")
                paths.append(folder / f"{name}{kind}")
    except OSError as error:
        raise UserError(f"tables {str(folder)!r}: cannot be written ({error.strerror}); give another folder") from error
    return paths


def escaped(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    text = text.replace("\\", r"\textbackslash ")
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    return text.replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
