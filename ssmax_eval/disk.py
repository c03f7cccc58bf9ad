"""What keeps processes out of each other's files: one lock, one way to write a file or folder whole or not at all, one to read JSON."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import UserError, origins

# how safetensors says that there is no space, and torch, which only sees that its file is shorter than what it wrote
FULL = ("No space left", "StorageFull", "File too large", "PytorchStreamWriter failed", ". unexpected pos ")
SURROGATE = rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\x00"  # as JSON writes one, or as its bytes are; 0: of other encodings than UTF-8
LOCK = ".lock"  # in a folder while a process holds it
HALF = ".ssmax-half-"  # begins the name of a folder of what is not whole yet; of a process that was killed it stays till swept()


@contextmanager
def held(folder: Path, busy: str, name: str = LOCK, wait: float = 0) -> Iterator[None]:
    """Hold a folder for this process alone; it is made if it is missing, and taken away again if it is left empty.

    busy: what to say if another process holds it after `wait` seconds; nothing is touched then. name: the lock's, where a
    folder has several. Whoever writes into the folder or cleans it does so inside the block. Raises UserError, also for a
    folder that cannot be made.
    """
    lock = FileLock(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=wait)
        except (Timeout, FileNotFoundError) as error:  # not found: its holder has just taken it away
            raise UserError(busy) from error
    except OSError as error:
        raise UserError(f"folder {str(folder)!r}: cannot be written ({error.strerror}); give another") from error
    try:
        yield
    finally:
        # while it is held: a lock on a file that is gone is none, so nobody who comes now holds what is removed here
        with suppress(OSError):  # where an open file cannot be removed, releasing it does that
            (folder / name).unlink()
        with suppress(OSError):  # it is not empty
            folder.rmdir()
        lock.release()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path of this process's own for a file or folder, and put what is there in the place of `path` at the end.

    A block that fails or is interrupted leaves nothing, and one that makes nothing leaves `path` as it is. What a killed process
    had begun beside it is taken away. Raises OSError if `path` is a folder that is not empty.
    """
    swept(path.parent)
    own, lock = begun(path.parent)
    half = own / path.name
    try:
        yield half
        if half.is_dir():
            with suppress(OSError):  # an empty folder, which some systems do not let another replace
                path.rmdir()
        if os.path.lexists(half):
            os.replace(half, path)
    finally:
        lock.release()
        shutil.rmtree(own, ignore_errors=True)


def begun(folder: Path) -> tuple[Path, FileLock]:
    """Make a folder inside another for what is not whole yet, and the lock that it has for as long as its process lives."""
    while True:
        own = Path(tempfile.mkdtemp(prefix=HALF, dir=folder))
        lock = FileLock(own / LOCK)
        # another process sweeps just now, and takes it for one that was left: it holds it, or has taken it away
        with suppress(Timeout, FileNotFoundError, FileExistsError):
            lock.acquire(timeout=0)
            if (own / LOCK).exists():
                return own, lock
        lock.release()


def swept(folder: Path) -> None:
    """Take away what processes that were killed left half inside a folder: what nobody holds any more."""
    for left in folder.glob(f"{HALF}*"):
        with suppress(OSError, Timeout):
            if not (left / LOCK).is_file():
                left.rmdir()  # killed before it had a lock
                continue
            with FileLock(left / LOCK).acquire(timeout=0):
                shutil.rmtree(left, ignore_errors=True)


def contents(folder: Path) -> list[Path]:
    """Return what a folder holds; the lock of a process that holds it is left out, and what was left half is taken away."""
    swept(folder)
    return [entry for entry in folder.iterdir() if entry.name != LOCK and not entry.name.startswith(HALF)]


def is_full(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it comes from, says that there is no space left; libraries have types of their own for it."""
    return any(
        getattr(each, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        or any(sign in str(each) for sign in FULL)
        for each in origins(error)
    )


def json_of(text: str | bytes) -> Any:
    """Return what JSON says. Raises ValueError, also for what is nested deeper than Python goes, and for half a character."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if isinstance(text, str) or re.search(SURROGATE, text):
        try:  # two of them are a character
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it holds half a character (a surrogate), which no file can") from error
    return found


def json_in(path: Path) -> Any:
    """Return what a JSON file says. Raises ValueError as json_of, and OSError for what is no file: a pipe would be waited for."""
    return json_of(bytes_in(path))


def bytes_in(path: Path) -> bytes:
    """Return what a file holds. Raises OSError, also for a pipe or a device."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.read_bytes()
