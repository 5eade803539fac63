"""A cell's processes get the devices that the size of the study means."""

import sys

import pytest

from pargo_ds.study import run_cell


@pytest.mark.parametrize(
    "processes, at_a_time, gpus, visible, places",
    [
        (None, 1, 0, None, ["--num_gpus", "2"]),
        (None, 2, 0, "", ["--num_gpus", "2"]),
        (None, 1, 8, None, ["--num_gpus", "8"]),
        (None, 4, 8, None, ["--num_gpus", "1"]),  # four packs a step do not divide over eight
        (2, 4, 8, None, ["--num_gpus", "2"]),
        (None, 1, 2, "4,5", ["--include", "localhost:4,5"]),
        (None, 4, 2, "4,5", ["--include", "localhost:4"]),
    ],
)
def test_a_trainer_starts_on_the_gpus_that_it_may_use(
    monkeypatch, processes, at_a_time, gpus, visible, places
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    start = run_cell.launcher(processes, at_a_time, gpus)
    assert start[:5] == [sys.executable, "-m", "deepspeed.launcher.runner", *places]
    assert start[-1] == "--module"


def test_what_trains_on_the_cpu_is_asked_on_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert run_cell.environment("one_process")["CUDA_VISIBLE_DEVICES"] == ""
    assert run_cell.environment("one_process")["DS_ACCELERATOR"] == "cpu"
    assert run_cell.environment("trainer")["CUDA_VISIBLE_DEVICES"] == "0"
