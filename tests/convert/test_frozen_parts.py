"""Frozen weights come from the files the run read, cast and checked as the run had them, and from
memory where not.
"""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from made_checkpoint import run_of, trained_model, write_checkpoint
from safetensors.torch import load_file, save_file
from tiny import run_command
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pargo_ds.checkpoint.frozen import frozen_hashes
from pargo_ds.convert.zero import frozen_hashes as hashing
from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights
from pargo_ds.convert.zero.zero_to_hf import convert
from pargo_ds.errors import CheckpointError


@pytest.fixture
def llm_copy(published_llm, tmp_path):
    """A tied published LLM of the test's own."""
    return shutil.copytree(published_llm(True), tmp_path / "llm")


def assert_frozen_as_built(checkpoint, model):
    """Every frozen weight of the source is the built model's, bit for bit."""
    source = CheckpointWeights(checkpoint)
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) > 20
    assert [
        name
        for name, p in frozen.items()
        if not torch.equal(source.read(name), p.to(torch.bfloat16))
    ] == []


def test_altered_files_are_refused_with_the_names_of_the_weights(
    tiny_run, llm_copy, timm_file, tmp_path
):
    vision = shutil.copy(timm_file["weights"], tmp_path / "vit.safetensors")
    run = run_of(tiny_run, llm_copy, {**timm_file, "weights": str(vision)}, "lora")
    checkpoint = write_checkpoint(run, trained_model(run), tmp_path / "step_00000003")
    query = "model.layers.0.self_attn.q_proj.weight"
    index = json.loads((llm_copy / "model.safetensors.index.json").read_text())["weight_map"]
    for path, name in ((vision, "blocks.0.mlp.fc1.bias"), (llm_copy / index[query], query)):
        tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
        tensors[name].view(-1)[5] += 0.25
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match="other frozen weights than this run has: 2 of"
    ) as caught:
        convert(checkpoint, tmp_path / "out")
    assert "llm.model.layers.0.self_attn.q_proj.base_layer.weight" in str(caught.value)
    assert "vision.backbone.blocks.0.mlp.fc1.bias" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".writing_out").exists()


def as_bin(folder):
    """Older repositories hold pickles; transformers reads them, zero-to-hf does not."""
    tensors = {
        name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()
    }
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def as_base_model(folder):
    """Saved without its head, so that the names lack the head's prefix."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).model.save_pretrained(
        folder / "base"
    )
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "base/model.safetensors").rename(folder / "model.safetensors")


@pytest.mark.parametrize("change, in_memory", [(as_bin, True), (as_base_model, False)])
def test_other_layouts_of_a_published_llm_give_the_same(
    tiny_run, llm_copy, timm_file, tmp_path, caplog, change, in_memory
):
    change(llm_copy)
    run = run_of(tiny_run, llm_copy, timm_file, "frozen")
    model = trained_model(run)
    checkpoint = write_checkpoint(run, model, tmp_path / "step_00000003")
    caplog.clear()
    assert_frozen_as_built(checkpoint, model)
    assert caplog.text.count("built in memory") == in_memory


def test_random_parts_are_drawn_again_in_the_runs_order(tiny_run, published_llm, tmp_path, caplog):
    vision = {"library": "timm", "name": "test_vit", "weights": "random"}
    run = run_of(tiny_run, published_llm(False), vision, "frozen")
    model = trained_model(run)
    checkpoint = write_checkpoint(run, model, tmp_path / "step_00000003")
    assert_frozen_as_built(checkpoint, model)
    assert caplog.text.count("the whole model is built in memory") == 1


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_exported_folder_in_fp32_is_a_source(
    tiny_run, published_llm, timm_file, tmp_path, caplog, precision
):
    first = run_of(tiny_run, published_llm(True), timm_file, "full")
    export = tmp_path / "export"
    convert(
        write_checkpoint(first, trained_model(first), tmp_path / "first"),
        export,
        dtype=torch.float32,
    )
    second = run_of(tiny_run, published_llm(True), timm_file, "frozen", start_from=str(export))
    second = second.model_copy(
        update={"train": second.train.model_copy(update={"precision": precision})}
    )
    model = trained_model(second)
    checkpoint = write_checkpoint(second, model, tmp_path / "second")
    source = CheckpointWeights(checkpoint)
    assert "in memory" not in caplog.text
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(source.read(name), parameter), name
    with pytest.raises(CheckpointError, match="choose another folder"):
        convert(checkpoint, export, force=True)  # it would destroy what it reads


def test_another_model_under_the_name_of_the_llm_is_refused(
    tiny_run, llm_copy, timm_file, tmp_path
):
    run = run_of(tiny_run, llm_copy, timm_file, "frozen")
    checkpoint = write_checkpoint(run, trained_model(run), tmp_path / "step_00000003")
    config = AutoConfig.from_pretrained(llm_copy)
    config.intermediate_size *= 2
    for path in llm_copy.glob("*.safetensors*"):
        path.unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(llm_copy)
    with pytest.raises(
        CheckpointError, match="LLM .* does not hold the model that its configuration describes"
    ):
        CheckpointWeights(checkpoint)


def test_another_tokenizer_under_the_name_of_the_llm_is_refused(
    tiny_run, llm_copy, timm_file, tmp_path
):
    run = run_of(tiny_run, llm_copy, timm_file, "frozen")
    checkpoint = write_checkpoint(run, trained_model(run), tmp_path / "step_00000003")
    tokenizer = AutoTokenizer.from_pretrained(llm_copy)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(llm_copy)
    with pytest.raises(CheckpointError, match="put back the tokenizer of"):
        CheckpointWeights(checkpoint)


def test_hashes_in_threads_are_those_of_the_run(monkeypatch):
    monkeypatch.setattr(hashing, "TASK", 3 * hashing.PIECE)
    model = (
        nn.Sequential(nn.Linear(700, 300), nn.BatchNorm1d(11))
        .requires_grad_(False)
        .to(torch.bfloat16)
    )
    model[1].register_buffer("flags", torch.rand(7) > 0.5)
    values = model.state_dict()

    class Held:
        stored = staticmethod(values.__getitem__)
        cast = staticmethod(lambda name, tensor: tensor)

    assert hashing.hash_frozen(Held(), {name: name for name in values}) == frozen_hashes(model)


def test_a_snapshot_in_the_hubs_cache_is_found_without_network(published_llm, tmp_path):
    snapshot = tmp_path / "models--someone--tiny/snapshots/0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(published_llm(True), snapshot)
    (tmp_path / "models--someone--tiny/refs").mkdir()
    (tmp_path / "models--someone--tiny/refs/main").write_text(snapshot.name)
    asked = (
        "import json, sys; from pargo_ds.convert.zero.published_files import PublishedFiles as P;"
        "print(json.dumps([len(P.find('someone/tiny').shapes), P.find('someone/other') is None]))"
    )
    process = run_command([sys.executable, "-c", asked], HF_HUB_CACHE=str(tmp_path))
    assert process.returncode == 0, process.stderr
    tensors = sum(len(load_file(path)) for path in snapshot.glob("*.safetensors"))
    assert json.loads(process.stdout) == [tensors, True]
