"""Seconds and peak memory of a call, on Linux from the kernel's own high-water mark, on CUDA from torch's."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

# on a CPU the seconds of the processor, which other work on the machine disturbs less
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def measured(function: Callable[[], object]) -> tuple[float, float]:
    """Return a call's seconds and the most MiB that it held above what was there before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
        before = resident("VmRSS")
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM")
    return seconds, (peak - before) / 2**20


def resident(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def compare(ours: tuple[str, Callable[[], object]], others: dict[str, Callable[[], object]], repeats: int) -> None:
    """Print the median seconds and memory of calls that take turns, and each as a multiple of ours."""
    calls = {ours[0]: ours[1], **others}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            found[name].append(measured(call))
    middle = {name: [sorted(each)[len(each) // 2] for each in zip(*found[name], strict=True)] for name in calls}
    for name, (seconds, mib) in middle.items():
        base = middle[ours[0]]
        print(f"{name:44} {seconds:8.2f} s {seconds / base[0]:6.2f}x   {mib:9.0f} MiB {mib / base[1]:7.2f}x")
