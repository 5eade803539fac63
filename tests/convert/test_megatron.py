"""Weights go to megatron-core's torch_dist format and come back bit for bit, and mean the same on
the way.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, Qwen2Config

from pargo_ds.convert.hf_folder import HFFolder, finish_folder
from pargo_ds.convert.megatron.arguments import gpt_arguments
from pargo_ds.convert.megatron.hf_to_megatron import to_megatron
from pargo_ds.convert.megatron.layout import Layout
from pargo_ds.convert.megatron.megatron_to_hf import MegatronWeights, megatron_to_hf
from pargo_ds.convert.megatron.torch_dist import TorchDistFolder
from pargo_ds.convert.verify import compare, load_model
from pargo_ds.convert.weight_files import write_hf_weights
from pargo_ds.errors import CheckpointError
from pargo_ds.files.sha256sums import HASHES

# Measured at TP 1 and 2 over all families: at most 6e-7, with logits up to 1.6.
LOGITS_TOLERANCE = 1e-6


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: t
        for path in sorted(folder.glob("*.safetensors"))
        for name, t in load_file(path).items()
    }


def assert_equal_tensors(first: Path, second: Path) -> None:
    one, other = tensors_of(first), tensors_of(second)
    assert one.keys() == other.keys()
    assert [
        n for n in one if one[n].dtype != other[n].dtype or not torch.equal(one[n], other[n])
    ] == []


def description_of(folder: Path) -> dict[str, bytes]:
    """All but the weight file, which may order its tensors otherwise, and the list with its hash."""
    weights = ("model.safetensors", HASHES)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in weights}


@pytest.mark.parametrize("separate_layers", [False, True], ids=["stacked", "separate"])
def test_to_megatron_and_back_is_bit_exact(exports, family, separate_layers, tmp_path):
    export = Path(shutil.copytree(exports[family], tmp_path / "export"))
    finish_folder(export)
    to_megatron(HFFolder(export), tmp_path / "there", separate_layers=separate_layers)
    megatron_to_hf(tmp_path / "there", tmp_path / "back")
    assert_equal_tensors(export, tmp_path / "back")
    assert description_of(export) == description_of(tmp_path / "back")


def test_the_number_of_files_changes_nothing(export, tmp_path):
    source = HFFolder(export)
    to_megatron(source, tmp_path / "there", file_bytes=20_000)
    assert len(list((tmp_path / "there").glob("*.distcp"))) > 3
    there, back = MegatronWeights(tmp_path / "there"), tmp_path / "back"
    there.write_description(back)
    write_hf_weights(there, back, file_bytes=20_000)
    assert len(list(back.glob("model-*-of-*.safetensors"))) > 3
    assert compare(source, HFFolder(back)).fits()


def test_queries_keys_and_values_are_interleaved_by_group():
    """Against rows that carry their own names: head dimension 2, four heads in two groups."""
    layout = Layout(
        layers=1, heads=4, groups=2, head_dim=2, tied=False, qkv_bias=True, qk_norm=False
    )
    entry = next(e for e in layout.entries() if e.name.endswith("linear_qkv.bias"))
    query, key, value = torch.arange(8), 100 + torch.arange(4), 200 + torch.arange(4)
    joined = layout.join(entry, [query, key, value])
    assert joined.tolist() == [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]
    assert all(
        torch.equal(a, b)
        for a, b in zip(layout.split(entry, joined), (query, key, value), strict=True)
    )


def test_torch_reads_what_is_written(export, checkpoint):
    """torch.distributed.checkpoint alone, without Megatron: plain names, whole tensors."""
    import torch.distributed.checkpoint as dcp

    weights = tensors_of(export)
    state = {"output_layer.weight": torch.zeros_like(weights["llm.lm_head.weight"])}
    state |= {
        "pargo.projector.output.linear.weight": torch.zeros_like(
            weights["projector.output.linear.weight"]
        )
    }
    fc2 = "decoder.layers.mlp.linear_fc2.weight"
    state[fc2] = torch.zeros(TorchDistFolder(checkpoint).tensors[fc2].shape)
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    assert torch.equal(state["output_layer.weight"], weights["llm.lm_head.weight"])
    assert torch.equal(
        state["pargo.projector.output.linear.weight"], weights["projector.output.linear.weight"]
    )
    for layer in range(3):
        assert torch.equal(
            state[fc2][layer], weights[f"llm.model.layers.{layer}.mlp.down_proj.weight"]
        )


def test_numbers_without_axes_and_integers_are_kept(tmp_path):
    """Such as batch norm's counters."""
    import torch.distributed.checkpoint as dcp

    from pargo_ds.convert.megatron.torch_dist import Chunk, write_torch_dist

    values = {
        "counter": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "half": torch.tensor([[1.5]]).half(),
    }
    zeros = {name: (0,) * value.ndim for name, value in values.items()}
    chunks = [
        Chunk(n, tuple(v.shape), zeros[n], tuple(v.shape), v.dtype, v.clone)
        for n, v in values.items()
    ]
    write_torch_dist(tmp_path, chunks, [], None, lambda _: None)
    state = {name: torch.zeros_like(value) for name, value in values.items()}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    folder = TorchDistFolder(tmp_path)
    for name, value in values.items():
        assert torch.equal(state[name], value)
        assert torch.equal(folder.read(name), value)
        assert folder.tensors[name].dtype == value.dtype


def test_a_chunk_that_overlaps_another_is_found(checkpoint):
    """Two chunks at places that do not tile the tensor."""
    import dataclasses

    folder = TorchDistFolder(checkpoint)
    key = "decoder.layers.mlp.linear_fc2.weight"
    stored = folder.tensors[key]
    moved = dataclasses.replace(stored.chunks[2], offsets=stored.chunks[1].offsets)
    folder.tensors[key] = dataclasses.replace(stored, chunks=(*stored.chunks[:2], moved))
    assert folder.read(key, 0).shape == (32, 48)
    for layer in (1, 2):
        with pytest.raises(CheckpointError, match="overlap or leave gaps"):
            folder.read(key, layer)


def test_megatron_loads_it_and_computes_the_same_logits(by_megatron, exports, family):
    found = load_file(by_megatron[family] / "logits.safetensors")
    with torch.no_grad():
        expected = load_model(HFFolder(exports[family])).llm(found["tokens"]).logits
    difference = float((found["logits"].float() - expected).abs().max())
    print(
        f"{family}: largest difference {difference:.1e} of logits up to {float(expected.abs().max()):.1f}"
    )
    assert difference <= LOGITS_TOLERANCE


def test_what_megatron_saves_comes_back(by_megatron, exports, family, tmp_path):
    """Stacked layers, separate ones, and gate and up projection under two keys, in turn."""
    megatron_to_hf(by_megatron[family] / "saved", tmp_path / "back", base=exports[family])
    back, weights = tensors_of(tmp_path / "back"), tensors_of(exports[family])
    assert back.keys() == weights.keys()
    # Megatron holds its parameters in fp32 here, which keeps every value of a bf16 model.
    assert [n for n in weights if not torch.equal(back[n].float(), weights[n].float())] == []


def test_a_checkpoint_of_megatrons_own_needs_a_base(by_megatron, family):
    with pytest.raises(CheckpointError, match="name the Hugging Face folder .* with --base"):
        MegatronWeights(by_megatron[family] / "saved")


def test_the_tracker_file_of_megatron_is_followed(checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    checkpoint.rename(tmp_path / "run" / "iter_0000250")
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("250\n")
    assert MegatronWeights(tmp_path / "run").where.name == "iter_0000250"


def test_a_padded_vocabulary_is_cut(checkpoint, export, tmp_path):
    """Megatron-LM rounds the vocabulary up; its own checkpoints have no manifest of ours."""
    from pargo_ds.convert.megatron import hf_to_megatron
    from pargo_ds.convert.megatron.megatron_to_hf import PADDED
    from pargo_ds.convert.megatron.torch_dist import write_torch_dist

    source = HFFolder(export)
    layout = Layout.of(source.config.text_config)
    chunks = [
        pad_rows(chunk) if chunk.key in PADDED else chunk
        for chunk in hf_to_megatron.chunks_of(source, layout, True)
    ]
    (tmp_path / "padded").mkdir()
    write_torch_dist(tmp_path / "padded", chunks, [], None, lambda _: None)
    assert compare(source, MegatronWeights(tmp_path / "padded", base=export)).fits()


def pad_rows(chunk):
    import dataclasses

    shape = (chunk.shape[0] + 24, *chunk.shape[1:])
    return dataclasses.replace(
        chunk,
        shape=shape,
        sizes=shape,
        read=lambda: torch.cat([chunk.read(), torch.zeros(24, *shape[1:], dtype=chunk.dtype)]),
    )


def test_arguments_of_gpt_model_are_plain_json(checkpoints, family):
    settings = json.loads((checkpoints[family] / "pargo/gpt_model.json").read_text())
    assert settings["transformer_config"]["num_layers"] == 3
    assert settings["transformer_config"]["add_qkv_bias"] == family.startswith("qwen2")
    assert settings["layer_spec"]["qk_layernorm"] == family.startswith("qwen3")
    assert settings["gpt_model"]["share_embeddings_and_output_weights"] == (", tied" in family)
    assert settings["gpt_model"].get("rope_scaling", False) == (family == "llama 3 positions")


@pytest.mark.parametrize(
    "config, said",
    [
        (LlamaConfig(attention_bias=True), "attention_bias"),
        (LlamaConfig(hidden_act="gelu"), "gelu"),
        (LlamaConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
        (Qwen2Config(use_sliding_window=True), "use_sliding_window"),
    ],
)
def test_what_gpt_model_cannot_say_is_refused(config, said):
    with pytest.raises(CheckpointError, match=said):
        gpt_arguments(config)


def test_another_family_is_refused():
    from transformers import GPT2Config

    with pytest.raises(
        CheckpointError,
        match="model_type is gpt2; megatron-core is written for llama, qwen2, qwen3",
    ):
        Layout.of(GPT2Config())
