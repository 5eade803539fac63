"""What trained is written while the model is still being built; the result does not depend on it."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import pytest
import torch
from made_checkpoint import exported_values, run_of, trained_model, write_checkpoint
from safetensors.torch import load_file

from pargo_ds.checkpoint.manifest import read_manifest
from pargo_ds.convert.weight_files import FILE_BYTES, SINGLE
from pargo_ds.convert.zero.checkpoint_files import CheckpointFiles, open_checkpoint
from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights
from pargo_ds.convert.zero.early_weights import early_specs, write_weights
from pargo_ds.convert.zero.zero_to_hf import convert


@pytest.fixture(params=["lora", "full"])
def checkpoint(request, tiny_run, published_llm, timm_file, tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint, and the weights that its export must hold in fp32, LoRA merged."""
    run = run_of(tiny_run, published_llm(True), timm_file, request.param)
    model = trained_model(run)
    folder = write_checkpoint(run, model, tmp_path / "step_00000003")
    return folder, exported_values(model, merge=True)[0]


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_trained_is_written_before_the_model_is_built(checkpoint, tmp_path):
    folder, expected = checkpoint
    out = tmp_path / "out"
    out.mkdir()
    files = open_checkpoint(folder)
    kept = [name for name in files.shapes if "lora_" not in name]
    trained = sum(4 * torch.Size(files.shapes[name]).numel() for name in kept)
    assert trained > 0

    def build() -> CheckpointWeights:
        give_up_at = time.monotonic() + 30
        while not (out / SINGLE).is_file() or (out / SINGLE).stat().st_size < trained:
            assert time.monotonic() < give_up_at, "the weights that trained did not come"
            time.sleep(0.01)
        return CheckpointWeights(files, dtype=torch.float32)

    source, hashes = write_weights(files, torch.float32, build, out, FILE_BYTES)
    assert source.specs == early_specs(files, torch.float32), "it was not written twice"
    assert set(hashes) == {SINGLE}
    assert same(load_file(out / SINGLE), expected)


@pytest.mark.parametrize("shapes", ["none, as before they were noted", "another"])
def test_a_manifest_that_does_not_name_all_tensors_gives_the_same_export(checkpoint, tmp_path, shapes):
    folder, expected = checkpoint
    manifest = read_manifest(folder)
    noted = {**manifest.frozen_shapes, next(iter(manifest.frozen_shapes)): [3]} if shapes == "another" else {}
    dataclasses.replace(manifest, frozen_shapes=noted).write(folder)
    convert(folder, tmp_path / "out", merge_lora=True, dtype=torch.float32, file_bytes=60_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert same({name: tensor for file in files for name, tensor in load_file(file).items()}, expected)


def test_a_model_that_cannot_be_built_ends_the_writing(checkpoint, tmp_path):
    folder, _ = checkpoint

    class Endless(CheckpointFiles):
        def pieces(self, name):
            return itertools.repeat(torch.zeros(1000))

    found = open_checkpoint(folder)
    files = Endless(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})

    def build() -> CheckpointWeights:
        while not any(tmp_path.glob("out/*")):
            time.sleep(0.01)
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_weights(files, torch.float32, build, tmp_path / "out", FILE_BYTES)
