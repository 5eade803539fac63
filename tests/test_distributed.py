"""A rank that failed does not wait for ranks that wait for it."""

import pytest
import torch.distributed as dist

from pargo_ds import distributed


@pytest.mark.parametrize(
    "backend, failed, left",
    [("nccl", True, False), ("nccl", False, True), ("gloo", True, True), ("gloo", False, True)],
)
def test_only_a_rank_that_failed_under_nccl_stays_in_its_group(monkeypatch, backend, failed, left):
    """Leaving a group of NCCL is collective; there is no NCCL here, so its name has to do."""
    calls = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("left"))
    distributed.close_process_group(failed)
    assert bool(calls) is left
