"""A CPU without instructions for bfloat16 is told, and no other device."""

from __future__ import annotations

import pytest
import torch

from pargo_ds.slow_bf16 import slow_bf16


@pytest.mark.parametrize(
    ("device", "capability", "slow"),
    [
        ("cpu", "AVX2", True),
        ("cpu", "DEFAULT", True),
        ("cpu", "AVX512", False),
        (torch.device("cuda", 1), "AVX2", False),
    ],
)
def test_only_a_cpu_without_avx512_is_slow(monkeypatch, device, capability, slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    said = slow_bf16(device)
    assert (said is not None) == slow
    if slow:
        assert capability in said
