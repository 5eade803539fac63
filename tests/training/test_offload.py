"""Optimizer states that lie in host memory are saved and come back; those on a disk are refused."""

from __future__ import annotations

import json

import pytest
from tiny import metrics

from pargo_ds.errors import ConfigError
from pargo_ds.training.engine import read_deepspeed_json


@pytest.mark.parametrize("part", ["offload_optimizer", "offload_param"])
def test_offload_to_a_disk_is_refused(tmp_path, part):
    path = tmp_path / "nvme.json"
    path.write_text(
        json.dumps(
            {"zero_optimization": {"stage": 3, part: {"device": "nvme", "nvme_path": "/tmp"}}}
        )
    )
    with pytest.raises(
        ConfigError, match=f'sets {part} to "nvme", which cannot be checkpointed; use "cpu"'
    ):
        read_deepspeed_json(path)
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, part: {"device": "cpu"}}}))
    assert read_deepspeed_json(path)["zero_optimization"]["stage"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, part",
    [(2, "offload_optimizer"), (3, "offload_param")],  # the second has both
)
def test_offload_to_host_memory_resumes_bit_identically(launch, tmp_path, stage, part):
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}, part: {"device": "cpu"}}
    (tmp_path / "offload.json").write_text(json.dumps({"zero_optimization": zero}))
    changes = {
        "deepspeed": str(tmp_path / "offload.json"),
        "train": {"steps": 6},
        "checkpoint": {"every": 2},
    }
    curves = []
    for name, stops in (("whole", [()]), ("resumed", [("--stop-after", "3"), ()])):
        for stop in stops:
            process, run_dir = launch(2, changes | {"name": name}, *stop)
            assert process.returncode == 0, process.stderr[-3000:]
        curves.append([(line["loss"], line["grad_norm"]) for line in metrics(run_dir)])
    assert len(curves[0]) == 6
    assert curves[0] == curves[1]
