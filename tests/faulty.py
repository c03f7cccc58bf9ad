"""Put a fault where a seam of the package is, and run a test with it in a process of its own.

A seam is a dotted name of the package: a function, a method, a property or a value. What stands there instead is Python
(faults.py), put in while the process runs: no file is copied or edited, and a renamed seam is missed at once.

As a program this is a server: it imports the libraries and the package once and forks for each test that it is asked to run.
"""

import functools
import importlib
import inspect
import json
import os
import pkgutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "ssmax_eval"
TESTS = Path(__file__).parent
LONGEST = 300  # seconds of a test


@dataclass(frozen=True)
class Fault:
    """test: what the test that sees it is called, or how its name begins. seam: where it is. wrong: what it does there.

    wrong is called in the seam's place, what stood there as its first argument; swaps: it is called once, and what it returns
    stands there.
    """

    test: str
    seam: str
    wrong: Callable[..., Any]
    swaps: bool = False

    def put_in(self) -> None:
        """Let the fault stand wherever the package has the seam.

        Named in the module that defines it, a function or class is exchanged wherever it was imported to. Named in a module
        that imports it, and as any other value, there alone.
        """
        owner, name, right = found(self.seam)
        wrong = self.wrong(right) if self.swaps else in_place_of(owner, name, right, self.wrong)
        setattr(owner, name, wrong)
        if isinstance(owner, ModuleType) and getattr(right, "__module__", None) == owner.__name__:
            for module in [each for key, each in sys.modules.items() if key.partition(".")[0] == PACKAGE]:
                for key in [key for key, value in vars(module).items() if value is right]:
                    setattr(module, key, wrong)


def found(seam: str) -> tuple[Any, str, Any]:
    """Return what holds a seam, its name there, and what stands there; AttributeError where nothing does.

    The name starts below the package; that of a library's, which the package calls, starts with the library.
    """
    parts = seam.split(".")
    ours = importlib.util.find_spec(f"{PACKAGE}.{parts[0]}") is not None
    path = [PACKAGE, *parts] if ours else parts
    owner: Any = importlib.import_module(path.pop(0))
    while len(path) > 1:
        # a submodule before a function of its name
        name = f"{owner.__name__}.{path[0]}" if isinstance(owner, ModuleType) else ""
        is_module = bool(name) and hasattr(owner, "__path__") and importlib.util.find_spec(name) is not None
        owner = importlib.import_module(name) if is_module else getattr(owner, path[0])
        path.pop(0)
    right = (inspect.getattr_static if isinstance(owner, type) else getattr)(owner, path[0])
    return owner, path[0], right


def in_place_of(owner: Any, name: str, right: Any, wrong: Callable[..., Any]) -> Any:
    """Return something of `right`'s kind that calls `wrong` with it."""
    if not callable(right) and (computes := [each for each in ("fget", "func", "compute") if hasattr(right, each)]):
        made = type(right)(in_place_of(owner, name, getattr(right, computes[0]), wrong))  # a property of some kind
        if hasattr(made, "__set_name__"):
            made.__set_name__(owner, name)
        return made
    assert callable(right), f"{name} is no function: swap it"

    @functools.wraps(right, updated=())
    def instead(*arguments: Any, **options: Any) -> Any:
        return wrong(right, *arguments, **options)

    return instead


def like(original: Any, **others: Any) -> Any:
    """Return something that has all that an object has, but for some of it: what one module sees of a library."""

    class Like:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

    made = Like()
    vars(made).update(others)
    return made


def file_of(test: str) -> Path:
    """Return the file that has a test."""
    (file,) = [file for file in TESTS.glob("test_*.py") if f"def {test}" in file.read_text()]
    return file


def load_all() -> None:
    """Import every module of the package, those left out whose libraries are not installed."""
    for module in pkgutil.walk_packages(importlib.import_module(PACKAGE).__path__, f"{PACKAGE}."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if str(error.name).startswith(PACKAGE):
                    raise


class Server:
    """Runs tests, each in a fork of a process that has everything imported, with a fault in it or without."""

    def __init__(self) -> None:
        package = str(Path(importlib.import_module(PACKAGE).__file__).parents[1])
        places = [package, str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS.parent,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, test: str, folder: Path, faulty: bool) -> tuple[int, str]:
        """Return pytest's exit code and what it wrote."""
        assert self.process.stdin
        assert self.process.stdout
        out = folder / "out.txt"
        print(json.dumps([test, str(out), faulty]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline()), out.read_text()

    def close(self) -> None:
        self.process.communicate()


def in_child(test: str, out: Path, faulty: bool) -> int:
    """Run a test and return pytest's exit code."""
    import pytest

    signal.alarm(LONGEST)
    stream = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    if faulty:
        from faults import FAULTS

        FAULTS[test].put_in()
    # one test in this process: the options for all tests, workers among them, are not for it
    options = ["-o", "addopts=-m 'not slow and not gpu and not network and not browser'"]
    options += ["-q", "-x", "-p", "no:cacheprovider", "--basetemp", str(out.parent / "tmp"), "-k", test]
    code = int(pytest.main([*options, str(file_of(test))]))
    sys.stdout.flush()
    return code


def serve() -> None:
    """Answer each line of [test, file for its output, whether with its fault] with an exit code."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they warn of libraries that are loaded
    import gc

    import faults  # noqa: F401
    import pytest  # noqa: F401

    load_all()
    gc.freeze()
    for line in sys.stdin:
        test, out, faulty = json.loads(line)
        if (child := os.fork()) == 0:
            code = 70
            try:
                code = in_child(test, Path(out), faulty)
            except BaseException:  # a fault that cannot be put in
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
