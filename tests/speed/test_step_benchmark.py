"""The measurement of a step's host time ends when one of its processes does."""

import pytest

from pargo_ds.errors import MachineFault
from pargo_ds.speed import step_benchmark


def test_a_process_that_fails_is_named_and_not_waited_for(monkeypatch):
    broken = {"zero": 0, "gather": "nonsense", "checkpointing": "none"}
    monkeypatch.setitem(step_benchmark.SYSTEMS, "broken", broken)
    with pytest.raises(MachineFault, match="the process of 'broken' has failed"):
        step_benchmark.measure(1, "frozen", 1, 1, ["broken"])
