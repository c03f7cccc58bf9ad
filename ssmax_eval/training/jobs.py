"""Several models from one command: the paper's configurations, one after the other or side by side."""

import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from ..disk import contents
from ..errors import UserError
from ..launch import launched
from ..mechanisms.files import import_file, imported_files
from ..models.retrofit import retrofit
from ..models.sources import TRAINING
from ..printable import ErrorStream, PrintableStream
from ..progress import Progress
from ..quiet import quiet_libraries
from .folder import held, read_record
from .job import Job
from .signs import of_retrofit
from .train import train

# arXiv 2501.19399: (a) to (d) trained so from the start, (f) swapped late; (e) is made from (a)
TRAINED = {"a": "softmax", "b": "ssmax", "c": "ssmax-fixed", "d": "ssmax-bias", "f": "softmax", "p": "learned-p"}


def paper_jobs(like: Job) -> list[Job]:
    """Return the trainings of the paper's configurations (a) to (d) and (f), and of its learned p_n, in one recipe and seed."""
    return [
        replace(like, attention=mechanism, swap_to="ssmax" if letter == "f" else None)
        for letter, mechanism in TRAINED.items()
    ]


def folder_after(folder: Path, job: Job) -> Path:
    """Return where configuration (e) goes, beside the softmax model in `folder`. Raises UserError if something else is there."""
    out = folder.with_name(f"{job.recipe.name}-ssmax-after-s{job.seed}")
    if out.exists() and (not out.is_dir() or contents(out)):
        try:
            ours = read_record(out).get("retrofitted") == "ssmax"
        except (OSError, ValueError, AttributeError):
            ours = False
        if not ours:
            raise UserError(f"output {str(out)!r}: it holds something else than configuration (e); give another folder")
    return out


def swapped_after(folder: Path, job: Job) -> Path:
    """Make configuration (e) from the trained softmax model in `folder`: the mechanism swapped after training."""
    with held(folder):  # whoever makes (e) from it, or trains it anew, waits or is refused
        out = folder_after(folder, job)
        wanted = read_record(folder) | {"retrofitted": "ssmax", "learned": {}, "signs": None}
        if (out / TRAINING).is_file() and read_record(out) | {"signs": None} == wanted:
            return out
        shutil.rmtree(out, ignore_errors=True)
        made = retrofit(str(folder), "ssmax", out)
        of_retrofit(str(folder), made)
        return made


def begin(threads: int, files: Sequence[str]) -> None:
    """Begin a process as this one is: quiet, with its share of threads, and the mechanisms of a user's files."""
    sys.stdout, sys.stderr = PrintableStream(sys.stdout), ErrorStream(sys.stderr)
    quiet_libraries()
    torch.set_num_threads(threads)
    for file in files:
        import_file(file)


def train_all(
    jobs: Sequence[Job],
    folders: Sequence[Path],
    device: str = "auto",
    fresh: bool = False,
    side_by_side: int = 1,
    compiled: bool | None = None,
    log_to: Sequence[str] = (),
) -> list[Path]:
    """Train each job into its folder (train.train), `side_by_side` at a time, each process with its share of the cores."""
    if side_by_side < 1 or (side_by_side > 1 and launched().count > 1):
        raise UserError(f"jobs {side_by_side}: allowed are whole numbers from 1, and only 1 under torchrun")
    if side_by_side == 1 or len(jobs) == 1:
        progress = Progress(sum(job.recipe.steps for job in jobs)) if len(jobs) > 1 and launched().is_first else None
        try:
            return [
                train(job, folder, device, fresh, compiled, progress, log_to)
                for job, folder in zip(jobs, folders, strict=True)
            ]
        finally:
            if progress is not None:
                progress.close()
    threads = max(1, (os.cpu_count() or 1) // side_by_side)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(side_by_side, context, begin, (threads, imported_files())) as pool:
        tasks = [
            pool.submit(train, job, folder, device, fresh, compiled, None, log_to)
            for job, folder in zip(jobs, folders, strict=True)
        ]
        return [task.result() for task in tasks]
