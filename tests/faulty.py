"""Run a test in a process that has the libraries loaded and nothing of the product: what starting each of them anew would cost."""

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path

LIBRARIES = [
    "pytest", "torch", "transformers", "transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3",
    "pandas", "scipy.stats", "seaborn", "typer", "rich.table", "jinja2", "datasets",
]  # fmt: skip


def run_test(test: str, file: Path, folder: Path) -> tuple[int, str]:
    """Run tests of a name against the package in `folder`; return pytest's exit code and its output."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)  # those that are missing are left out
    out = folder / "out.txt"
    process = context.Process(target=in_child, args=(test, file, folder, out))
    process.start()
    process.join()
    return process.exitcode or 0, out.read_text()


def in_child(test: str, file: Path, folder: Path, out: Path) -> None:
    import pytest

    assert not any(name.split(".")[0] == "ssmax_eval" for name in sys.modules)
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = str(folder)  # for what tests start themselves
    sys.path.insert(0, str(folder))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they warn of libraries that are loaded
    os.chdir(folder)
    with out.open("w") as stream, redirect_stdout(stream), redirect_stderr(stream):
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", test, str(file)])
        import ssmax_eval

        if not Path(ssmax_eval.__file__).is_relative_to(folder):
            code = 3
            print(f"the package under test is {ssmax_eval.__file__}")
    os._exit(int(code))
