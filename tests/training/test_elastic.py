"""A run that goes on with another number of ranks, or after a stop, as if nothing had happened."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import merged, metrics

from pargo_ds.checkpoint.fragments import WEIGHT, FragmentFiles
from pargo_ds.checkpoint.manifest import read_manifest

LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
STEPS = 8
# Measured after 8 steps, fp32, weights up to 1.0: 6.0e-8 (ZeRO 2) and 1.2e-7 (ZeRO 3), sums in
# another order, packs together or alone.
WEIGHT_TOLERANCE = 1e-6
LOSS_TOLERANCE = 1e-5


def changes(name: str, zero: str) -> dict:
    return {
        "name": name,
        "deepspeed": f"ds_configs/{zero}.json",
        "train": {
            "steps": STEPS,
            "llm": {"mode": "lora", "lr": 1e-3, "weight_decay": 0.01, "lora": LORA},
        },
        "checkpoint": {"every": 100},
    }


def succeeded(process) -> None:
    assert process.returncode == 0, process.stderr[-4000:]


def trained(run_dir) -> dict[str, torch.Tensor]:
    folder = run_dir / "checkpoints" / f"step_{STEPS:08d}"
    files = FragmentFiles(folder, read_manifest(folder).parameters)
    return {
        f"{kind} {name}": files.whole(kind, name)
        for name in files.names()
        for kind in files.kinds(name)
    }


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_two_one_four_two_ranks_train_the_weights_of_an_uninterrupted_run(launch, zero):
    process, whole = launch(2, changes("whole", zero))
    succeeded(process)
    for ranks, together, stop in ((2, 1, 2), (1, 3, 4), (4, 1, 6), (2, 2, None)):
        run = merged(changes("elastic", zero), {"batch": {"packs_per_forward": together}})
        process, run_dir = launch(ranks, run, *(["--stop-after", str(stop)] if stop else []))
        succeeded(process)
        state = json.loads((run_dir / "state.json").read_text())
        assert state["state"] == ("interrupted" if stop else "done")
        assert state["step"] == (stop or STEPS)
    expected, found = trained(whole), trained(run_dir)
    assert expected.keys() == found.keys()
    difference = max(
        float((expected[name] - found[name]).abs().max()) for name in expected if WEIGHT in name
    )
    print(f"{zero}: largest difference of a weight {difference:.1e}")
    assert difference < WEIGHT_TOLERANCE
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, STEPS + 1))
    for one, other in zip(metrics(whole), metrics(run_dir), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=LOSS_TOLERANCE)
        assert other["target_tokens"] == one["target_tokens"]
        assert other["total_samples"] == one["total_samples"]


def test_a_run_crosses_from_zero_3_on_two_ranks_to_zero_2_on_one(launch):
    process, run_dir = launch(2, changes("crossing", "zero3"), "--stop-after", "2")
    succeeded(process)
    process, _ = launch(1, changes("crossing", "zero2") | {"train": changes("", "")["train"]})
    assert (
        "holds a run with other settings" in process.stderr
    )  # the DeepSpeed file is a setting like any other
    (run_dir / "config.yaml").unlink()
    process, _ = launch(1, changes("crossing", "zero2"))
    succeeded(process)
    process, whole = launch(1, changes("whole", "zero2"))
    succeeded(process)
    for one, other in zip(metrics(whole), metrics(run_dir), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=LOSS_TOLERANCE)


def test_another_frozen_encoder_is_refused_by_name(launch, tmp_path):
    import timm
    from safetensors.torch import save_file

    weights = tmp_path / "encoder.safetensors"
    torch.manual_seed(0)
    state = timm.create_model("test_vit", pretrained=False, img_size=64).state_dict()
    save_file(state, weights)
    vision = {"vision": {"weights": str(weights)}}
    process, run_dir = launch(1, changes("frozen", "zero3") | vision, "--stop-after", "1")
    succeeded(process)
    state["blocks.0.attn.proj.weight"][0, 0] += 1e-3
    save_file(state, weights)
    process, _ = launch(1, changes("frozen", "zero3") | vision)
    assert process.returncode != 0
    assert "beside other frozen weights" in process.stderr
    assert "blocks.0.attn.proj.weight" in process.stderr
    assert json.loads((run_dir / "state.json").read_text())["restart"] is False
