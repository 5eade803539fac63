"""A run's checkpoint goes to megatron-core directly, and it is what the detour over the Hugging
Face folder gives.
"""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import draw

from pargo_ds.checkpoint.manifest import read_manifest
from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.megatron.hf_to_megatron import to_megatron
from pargo_ds.convert.megatron.megatron_to_hf import MegatronWeights
from pargo_ds.convert.megatron.torch_dist import TorchDistFolder
from pargo_ds.convert.verify import compare
from pargo_ds.convert.zero import zero_to_hf
from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights
from pargo_ds.errors import CheckpointError


def assert_both_roads_meet(run, tmp_path):
    export, direct, detour = (tmp_path / name for name in ("export", "direct", "detour"))
    zero_to_hf.convert(run, export, merge_lora=True)
    to_megatron(CheckpointWeights(run), direct)
    to_megatron(HFFolder(export), detour)
    one, other = TorchDistFolder(direct), TorchDistFolder(detour)
    assert one.tensors.keys() == other.tensors.keys()
    assert [key for key in one.tensors if one.tensors[key].dtype != other.tensors[key].dtype] == []
    assert [key for key in one.tensors if not torch.equal(one.read(key), other.read(key))] == []
    described = [
        {path.name: path.read_text() for path in (folder / "pargo/huggingface").iterdir()}
        for folder in (direct, detour)
    ]
    assert described[0] == described[1]
    return export, direct


def test_lora_in_bf16_is_merged_on_the_way(convert, lora_run, tmp_path):
    export, direct = assert_both_roads_meet(lora_run, tmp_path)
    assert compare(HFFolder(export), MegatronWeights(direct)).fits()
    (tmp_path / "image.png").write_bytes(draw("red", 4))
    asked = ("--image", tmp_path / "image.png", "--question", "What colour is it?")
    process = convert("verify", lora_run, direct, *asked)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "logits: largest difference 0.000e+00" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("zero, ranks", [("zero2", 1), ("zero3", 4)])
def test_a_trained_untied_llm_with_biases(train, tmp_path, zero, ranks):
    family = {"model_type": "qwen2", "tie_word_embeddings": False}
    changes = {"deepspeed": f"ds_configs/{zero}.json", "train": {"steps": 1, "warmup_steps": 0}}
    run = train({**changes, "llm": {"architecture": family}}, ranks)
    assert_both_roads_meet(run, tmp_path)


@pytest.fixture
def damaged(lora_run, tmp_path):
    """A copy of the run's checkpoint."""
    (step,) = (lora_run / "checkpoints").glob("step_*")
    return shutil.copytree(step, tmp_path / step.name)


def test_other_frozen_weights_are_refused(damaged):
    manifest = read_manifest(damaged)
    name = next(iter(manifest.frozen))
    dataclasses.replace(
        manifest, frozen={**manifest.frozen, name: "bfloat16 0123456789abcdef"}
    ).write(damaged)
    with pytest.raises(
        CheckpointError, match=f"other frozen weights than this run has: 1 of .* differ .{name}"
    ):
        CheckpointWeights(damaged)


def test_a_fragment_that_was_altered_is_named(damaged):
    path = damaged / "fragments/rank_00001.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="fragments/rank_00001.safetensors was altered"):
        CheckpointWeights(damaged)


def test_parameters_that_are_missing_and_unexpected_are_listed_together(damaged):
    manifest = read_manifest(damaged)
    first, *rest = sorted(manifest.parameters)
    renamed = {
        "projector.strange": manifest.parameters[first],
        **{n: manifest.parameters[n] for n in rest},
    }
    dataclasses.replace(manifest, parameters=renamed).write(damaged)
    with pytest.raises(CheckpointError) as caught:
        CheckpointWeights(damaged)
    assert f"missing 1 ({first})" in str(caught.value)
    assert "unexpected 1 (projector.strange)" in str(caught.value)
