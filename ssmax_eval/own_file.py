"""Python files of a user's own: what runs is the text that was read, and hashed."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from .errors import UserError


def run_file(path: Path, content: bytes, module: str) -> ModuleType:
    """Run a file's content as a module of a name, and return it; it is no module if that fails.

    Python's own import would run bytecode that it cached of an earlier text of the same size and second, and leave that cache
    beside the user's file. Raises UserError for a name that does not end in .py, and what the content raises.
    """
    spec = importlib.util.spec_from_file_location(module, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise UserError(f"import {path.name!r}: it is no Python file; its name has to end in .py")
    made = sys.modules[module] = importlib.util.module_from_spec(spec)
    try:
        exec(spec.loader.source_to_code(content, str(path)), made.__dict__)
    except BaseException:
        del sys.modules[module]
        raise
    return made
