"""Whether a device has instructions for bfloat16, or computes it in software."""

from __future__ import annotations

import torch


def slow_bf16(device: torch.device | str) -> str | None:
    """Return why bfloat16 is slow on a device, as a sentence; None where it is not.

    On a CPU without AVX-512 torch's matrix products in bfloat16 take a loop in software: 7.6
    against 55 GFLOP/s in float32 (900 x 576 by 576 x 1536, one thread of an AVX2 EPYC, torch 2.15).
    """
    if torch.device(device).type != "cpu":
        return None
    found = torch.backends.cpu.get_cpu_capability()
    if found.startswith("AVX512"):
        return None
    return (
        f"this CPU ({found}) has no instructions for bfloat16, which takes several times as long "
        "as float32"
    )
