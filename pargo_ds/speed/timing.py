"""Time and memory of small calls: interleaved medians, a measured copy bandwidth, peak memory.

Alternatives are timed in turns (a, b, c, a, b, c, ...), so that a machine that slows down meanwhile
slows all of them down. CPUs are timed in process CPU time, which another process cannot lengthen by
taking the core away (through shared caches and memory it still can); GPUs with CUDA events. Caches
stay warm between turns, so small shapes may beat the floor that a copy of large tensors sets.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

import torch

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)
MEMORY_EVENT = "[memory]"
QUEUE_CYCLES = 4_000_000  # about 2 ms
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc takes no more


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory in the process; False where the C library has no mallopt.

    By default it hands the top of the heap back after each large release, and the next call pays
    for every page again: the same call took 7 or 15 ms of CPU time, depending on which call had run
    before it (measured, 2,272 page faults).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    )


def elapsed_ms(call: Call, device: torch.device) -> float:
    """Return the milliseconds of one call: process CPU time, or between two CUDA events."""
    if device.type != "cuda":
        started = time.process_time()
        call()
        return (time.process_time() - started) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The GPU waits while Python queues the call's kernels; otherwise short calls show Python's time
    # and not theirs.
    torch.cuda._sleep(QUEUE_CYCLES)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def interleaved_medians(
    calls: Mapping[Name, Call], device: torch.device, repetitions: int = 21, seconds: float = 20.0
) -> dict[Name, float]:
    """Return the median milliseconds of each call, taken in turns after one turn that does not
    count.

    Ends after `repetitions` turns, or after the third one that ends past `seconds`.
    """
    for call in calls.values():
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(repetitions):
        if turn >= 3 and time.perf_counter() - started > seconds:
            break
        for name, call in calls.items():
            times[name].append(elapsed_ms(call, device))
    return {name: median(values) for name, values in times.items()}


def copy_bandwidth(device: torch.device, mib: int | None = None, repetitions: int = 9) -> float:
    """Return the bytes read and written per second by a plain copy of `mib` MiB (default: 256 on
    CPU, 1024 on CUDA).
    """
    size = mib or (1024 if device.type == "cuda" else 256)
    source = torch.ones(size * 2**18, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    copy = interleaved_medians({"copy": lambda: target.copy_(source)}, device, repetitions)["copy"]
    return 2 * source.numel() * 4 / (copy / 1e3)


def peak_mib(call: Call, device: torch.device) -> float:
    """Return the largest memory in MiB that torch held during the call beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    # The allocator of the CPU keeps no peak; the profiler notes each allocation and release.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = [event for event in profile.kineto_results.events() if event.name() == MEMORY_EVENT]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20
