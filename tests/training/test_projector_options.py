"""The options of the authors' release (`norm: post` and others) train, and are part of the model's
identity.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pargo_ds.assembly.configs import build_meta_model
from pargo_ds.assembly.fingerprint import model_fingerprint
from pargo_ds.config import parse_config

WORKER = [str(Path(__file__).with_name("recording_worker.py"))]
RELEASE = {
    "norm": "post",
    "patch_norm": False,
    "norm_eps": 1e-12,
    "query_positions": True,
    "cascade": "release",
    "soft_prompt": False,
}


def test_every_new_parameter_gets_a_gradient(launch, monkeypatch, tmp_path):
    monkeypatch.setenv("RECORD", str(tmp_path / "gradients.safetensors"))
    changes = {
        "train": {"steps": 2, "warmup_steps": 0},
        "deepspeed": "ds_configs/zero3.json",
        "projector": RELEASE,
    }
    process, _ = launch(2, changes, module=WORKER)
    assert process.returncode == 0, process.stderr[-3000:]
    gradients = load_file(tmp_path / "gradients.safetensors")
    new = {name for name in gradients if "positions" in name or "token_norm" in name}
    assert new == {
        f"projector.{name}" for name in ("positions.weight", "token_norm.weight", "token_norm.bias")
    }
    assert not any("patch_norm" in name or "final_norm" in name for name in gradients)
    assert [
        n for n, g in gradients.items() if not torch.isfinite(g).all() or g.abs().max() == 0
    ] == []


@pytest.mark.parametrize(
    "name, value",
    [("norm", "post"), ("norm_eps", 1e-12), ("query_positions", True), ("soft_prompt", False)],
)
def test_another_value_changes_the_fingerprint(tiny_run, name, value):
    other = {**tiny_run, "projector": {**tiny_run["projector"], name: value}}
    assert model_fingerprint(build_meta_model(parse_config(tiny_run))) != model_fingerprint(
        build_meta_model(parse_config(other))
    )
