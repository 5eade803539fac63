"""Damage of every kind, in every format, ends with an error that names it, and leaves nothing
behind.
"""

from __future__ import annotations

import json
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.megatron.hf_to_megatron import MANIFEST, to_megatron, write_manifest
from pargo_ds.convert.megatron.megatron_to_hf import MegatronWeights, megatron_to_hf
from pargo_ds.convert.megatron.torch_dist_metadata import read_metadata
from pargo_ds.errors import CheckpointError


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def change(folder, **changes):
    """Rewrite model.safetensors; None drops a tensor, a string gives it another name, a tensor
    replaces it.
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, new in changes.items():
        old = tensors.pop(name)
        if new is not None:
            tensors |= {new: old} if isinstance(new, str) else {name: new}
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_unexpected_and_misshapen_tensors_are_listed_together(export, tmp_path):
    change(
        export,
        **{
            "llm.model.norm.weight": None,
            "projector.output.linear.weight": "projector.outlet.weight",
            "llm.model.layers.1.mlp.up_proj.weight": torch.zeros(7, 32),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        to_megatron(HFFolder(export), tmp_path / "out")
    said = str(caught.value)
    assert "missing 2 (llm.model.norm.weight, projector.output.linear.weight)" in said
    assert "unexpected 1 (projector.outlet.weight)" in said
    assert "llm.model.layers.1.mlp.up_proj.weight [7, 32] instead of [48, 32]" in said
    assert not (tmp_path / "out").exists()


def test_a_truncated_safetensors_file_is_named(export):
    path = export / "model.safetensors"
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read"):
        HFFolder(export)


def test_layers_of_different_types_are_refused(export, tmp_path):
    name = "llm.model.layers.1.self_attn.k_proj.weight"
    change(export, **{name: load_file(export / "model.safetensors")[name].half()})
    with pytest.raises(
        CheckpointError, match="self_attn.k_proj.weight.* become one tensor but differ"
    ):
        to_megatron(HFFolder(export), tmp_path / "out")


def test_an_adapter_that_is_not_merged_is_refused(export):
    (export / "adapter").mkdir()
    with pytest.raises(CheckpointError, match="--merge-lora"):
        HFFolder(export)


def test_an_index_that_differs_from_its_files_is_refused(export):
    names = list(load_file(export / "model.safetensors"))
    (export / "model.safetensors").rename(export / "model-00001-of-00001.safetensors")
    index = {
        "weight_map": dict.fromkeys([*names[1:], "strange"], "model-00001-of-00001.safetensors")
    }
    (export / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        HFFolder(export)
    assert names[0] in str(caught.value)
    assert "strange" in str(caught.value)
    index["weight_map"][names[0]] = "../model.safetensors"
    (export / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names ../model.safetensors, which is not there"):
        HFFolder(export)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_any_file_of_ours_is_found(checkpoint, seed):
    drawn = random.Random(seed)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    path = files[seed % len(files)]
    flip(path, drawn.randrange(path.stat().st_size * 8))
    with pytest.raises(CheckpointError) as caught:
        MegatronWeights(checkpoint)
    assert path.name in str(caught.value)


def test_missing_and_truncated_files_of_ours_are_named(checkpoint, tmp_path):
    data = checkpoint / "__0_0.distcp"
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="__0_0.distcp has .* bytes, expected"):
        megatron_to_hf(checkpoint, tmp_path / "out")
    data.unlink()
    with pytest.raises(CheckpointError, match="__0_0.distcp is missing"):
        megatron_to_hf(checkpoint, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torch_dist"]


@pytest.fixture
def foreign(checkpoint):
    """A checkpoint without a manifest, as Megatron's own are."""
    (checkpoint / MANIFEST).unlink()
    return checkpoint


def test_a_flipped_bit_in_a_tensor_of_a_foreign_checkpoint_is_found(foreign, export, tmp_path):
    key = "decoder.layers.mlp.linear_fc1.weight"
    tensors, _ = read_metadata(foreign)
    chunk = tensors[key].chunks[1]
    flip(foreign / chunk.file, (chunk.start + chunk.length // 2) * 8)
    with pytest.raises(CheckpointError, match=f"__0_0.distcp: {key} at .1, 0, 0. cannot be read"):
        megatron_to_hf(foreign, tmp_path / "out", base=export)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_truncated_or_missing_file_of_a_foreign_checkpoint_is_named(foreign, export):
    data = foreign / "__0_0.distcp"
    os.truncate(data, data.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="__0_0.distcp has .* it was cut"):
        MegatronWeights(foreign, base=export)
    data.unlink()
    with pytest.raises(CheckpointError, match="__0_0.distcp is missing"):
        MegatronWeights(foreign, base=export)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_metadata_never_gives_other_tensors(foreign, export, seed):
    """A flipped bit in the pickle: an error of ours, or the same tensors (it may hit what is not
    needed).
    """
    drawn = random.Random(seed)
    flip(foreign / ".metadata", drawn.randrange((foreign / ".metadata").stat().st_size * 8))
    truth = HFFolder(export)
    try:
        source = MegatronWeights(foreign, base=export)
        assert all(torch.equal(source.read(name), truth.read(name)) for name in truth.specs)
    except CheckpointError as error:
        assert str(foreign) in str(error)  # noqa: PT017 (either outcome is right)


class Evil:
    """Unpickling it would run a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["whole", "within"])
def test_a_pickle_that_holds_anything_else_is_refused(foreign, tmp_path, place):
    from torch.distributed.checkpoint.metadata import Metadata

    evil = Evil(tmp_path / "was_here")
    (foreign / ".metadata").write_bytes(
        pickle.dumps(evil if place == "whole" else Metadata({}, planner_data=evil))
    )
    with pytest.raises(CheckpointError, match=r"posix.system does not belong there"):
        read_metadata(foreign)
    assert not (tmp_path / "was_here").exists()


def test_a_tensor_file_with_code_in_it_is_refused(foreign, export, tmp_path):
    """torch.save's own pickles are read with weights_only."""
    tensors, _ = read_metadata(foreign)
    (chunk,) = tensors["decoder.final_layernorm.weight"].chunks
    torch.save(Evil(tmp_path / "was_here"), tmp_path / "evil.pt")
    content = (tmp_path / "evil.pt").read_bytes()
    assert len(content) <= chunk.length
    data = bytearray((foreign / chunk.file).read_bytes())
    data[chunk.start : chunk.start + chunk.length] = b"\0" * (chunk.length - len(content)) + content
    (foreign / chunk.file).write_bytes(data)
    with pytest.raises(CheckpointError, match="decoder.final_layernorm.weight"):
        megatron_to_hf(foreign, tmp_path / "out", base=export)
    assert not (tmp_path / "was_here").exists()


def test_keys_of_torch_dist_are_checked_together(export, tmp_path):
    """Dropped, renamed and reshaped keys in one error; what Megatron-LM keeps beside the model is
    no fault.
    """
    from pargo_ds.convert.megatron.hf_to_megatron import chunks_of
    from pargo_ds.convert.megatron.layout import Layout
    from pargo_ds.convert.megatron.torch_dist import Chunk, write_torch_dist

    source = HFFolder(export)
    chunks = {
        (chunk.key, chunk.offsets): chunk
        for chunk in chunks_of(source, Layout.of(source.config.text_config), True)
    }
    del chunks["decoder.final_layernorm.weight", (0,)]
    for key, shape in (
        ("output_layer.weight", (4, 32)),
        ("strange", (2,)),
        ("optimizer.state.exp_avg", (2,)),
    ):
        zeros = torch.zeros(shape)
        chunks[key, (0,) * len(shape)] = Chunk(
            key, shape, (0,) * len(shape), shape, zeros.dtype, zeros.clone
        )
    (tmp_path / "there").mkdir()
    write_torch_dist(
        tmp_path / "there",
        chunks.values(),
        ["rng_state/shard_0_1", "common_state/shard_0_1"],
        None,
        lambda _: None,
    )
    with pytest.raises(CheckpointError) as caught:
        MegatronWeights(tmp_path / "there", base=export)
    said = str(caught.value)
    assert "missing 1 (decoder.final_layernorm.weight)" in said
    assert "unexpected 1 (strange)" in said
    assert "output_layer.weight [4, 32] instead of" in said
    assert "exp_avg" not in said


def test_a_manifest_that_leaves_the_folder_is_refused(checkpoint):
    (checkpoint / "pargo/gpt_model.json").unlink()
    (checkpoint / "pargo/gpt_model.json").symlink_to("/etc/hostname")
    write_manifest(checkpoint)
    with pytest.raises(CheckpointError, match="leaves the checkpoint's folder"):
        MegatronWeights(checkpoint)
