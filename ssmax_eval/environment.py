"""What ran a process: packages, revision, machine, command line, memory."""

import functools
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .mechanisms.layers import reads_on


def environment(model: PreTrainedModel | None) -> dict[str, Any]:
    """Return packages, revision and machine. model: whose device is told; None for one that is not in this process."""
    packages = ("ssmax-eval", "torch", "transformers", "tokenizers", "numpy", "pandas")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = "unknown" if model is None else reads_on(model).type
    if model is not None and device == "cuda":
        device = torch.cuda.get_device_name(reads_on(model))
    return {
        "versions": versions,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


PATH = re.compile(r"(?:(?<=^)|(?<=[=,]))[/~][^=,]*")  # an absolute one, alone or as a value


def command() -> str | None:
    """Return the command line that started this process, if it was ours, with no more of a path than reproduces it."""
    if Path(sys.argv[0]).name not in ("ssmax-eval", "__main__.py"):
        return None
    return shlex.join(["ssmax-eval", *(PATH.sub(lambda found: told(found[0]), each) for each in sys.argv[1:])])


def told(path: str) -> str:
    """Return what a record tells of a path: from the working directory, or else its last part, for records are passed on."""
    whole = Path(os.path.abspath(os.path.expanduser(path)))
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else whole.name or "/"


@functools.cache
def git_revision() -> str | None:
    """Return the revision of the checkout this package runs from; None for an installed copy."""
    top = Path(__file__).resolve().parent.parent
    if not (top / ".git").exists():
        return None
    out = subprocess.run(["git", "-C", top, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return out.stdout.strip() or None


def peak_memory(model: PreTrainedModel | None) -> int | None:
    """Return the process's peak so far in bytes: of the GPU if the model is on one, else resident memory; None where unknown."""
    if model is not None and reads_on(model).type == "cuda":
        return int(torch.cuda.max_memory_allocated(reads_on(model)))
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
