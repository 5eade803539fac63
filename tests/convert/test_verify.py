"""verify: the same model or not, whatever the formats, said with names and numbers and the exit
status.
"""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import draw

from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.megatron.megatron_to_hf import MegatronWeights
from pargo_ds.convert.verify import compare, compare_logits, largest_difference, open_weights
from pargo_ds.errors import CheckpointError


def add(folder, name, amount):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[3] += amount
    save_file(tensors, path, metadata={"format": "pt"})


def test_every_format_is_recognised(exports, checkpoints, family, tmp_path):
    first, second = open_weights(exports[family]), open_weights(checkpoints[family])
    assert (type(first), type(second)) == (HFFolder, MegatronWeights)
    comparison = compare(first, second)
    assert comparison.fits()
    assert comparison.tensors == len(first.specs)
    with pytest.raises(CheckpointError, match="is neither a Hugging Face folder"):
        open_weights(tmp_path)


def test_the_command_names_the_largest_difference_and_exits_with_1(
    convert, export, checkpoint, tmp_path
):
    add(export, "projector.output.linear.weight", 0.125)
    add(export, "llm.model.layers.2.self_attn.v_proj.weight", 0.5)
    (tmp_path / "image.png").write_bytes(draw("blue", 0))
    asked = ("--image", tmp_path / "image.png", "--question", "What colour is it?")
    process = convert("verify", export, checkpoint, *asked)
    assert process.returncode == 1, process.stderr
    assert "2 of" in process.stdout
    assert "most llm.model.layers.2.self_attn.v_proj.weight: 5.000e-01" in process.stdout
    assert "logits: largest difference" in process.stdout
    assert process.stdout.rstrip().endswith("NOT the same")


def test_logits_are_equal_where_the_weights_are(export, checkpoint, tmp_path):
    (tmp_path / "image.png").write_bytes(draw("blue", 0))
    asked = (tmp_path / "image.png", "What colour is it?")
    assert compare_logits(HFFolder(export), MegatronWeights(checkpoint), *asked) == 0.0
    add(export, "projector.output.linear.weight", 1.0)  # only what the image says has changed
    assert compare_logits(HFFolder(export), MegatronWeights(checkpoint), *asked) > 0.0


def test_a_tolerance_lets_small_differences_pass(export, checkpoint):
    add(export, "projector.output.linear.weight", 1e-4)
    comparison = compare(HFFolder(export), MegatronWeights(checkpoint))
    assert not comparison.fits()
    assert not comparison.fits(1e-5)
    assert comparison.fits(2e-4)


def test_models_of_other_shapes_are_named(exports):
    comparison = compare(
        *(
            HFFolder(exports[f])
            for f in ("llama, tied, groups of 2", "qwen3, norms, groups of 2, wide heads")
        )
    )
    assert not comparison.fits(1e9)
    assert "llm.lm_head.weight" in comparison.only_second
    assert any("q_proj.weight ([32, 32] and [64, 32])" in said for said in comparison.misshapen)


@pytest.mark.parametrize(
    "one, other, expected",
    [
        ([1.0, 2.0], [1.0, 2.0], None),
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([0.0], [-0.0], 0.0),
        ([math.nan], [math.nan], None),
        ([math.nan], [1.0], math.inf),
        ([math.inf], [math.inf], None),
        ([math.inf], [1.0], math.inf),
    ],
)
def test_differences_of_special_values(one, other, expected):
    assert largest_difference(torch.tensor(one), torch.tensor(other)) == expected
