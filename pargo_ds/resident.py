"""The memory of this process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def resident_mib(line: str = "VmHWM") -> float:
    """Return the resident memory of this process in MiB: VmHWM, the most so far, or VmRSS, now.

    resource's ru_maxrss would begin with what the process that started this one had held.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    fields = dict(entry.split(":", 1) for entry in status.splitlines())
    return int(fields[line].split()[0]) / 1024
