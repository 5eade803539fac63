"""ZeRO-3 gathers whole layers where that is right, and nothing else."""

import json

import pytest
import torch
from tiny import ROOT
from torch import nn

from pargo_ds import assembly
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.config import parse_config
from pargo_ds.errors import ConfigError
from pargo_ds.training.engine import read_deepspeed_json
from pargo_ds.training.gathering import (
    described,
    gather_sizes,
    layers_to_gather,
    leaf_layers,
    watch_inputs,
)


def build(tiny_run, **train):
    run = parse_config({**tiny_run, "train": {**tiny_run["train"], **train}})
    model = assembly.build_model(run, assembly.build_processor(run), None)
    apply_freezing(model, run.train)
    return model


def test_blocks_of_the_encoder_layers_of_projector_and_llm_are_gathered_whole(tiny_run):
    model = build(tiny_run)
    layers = layers_to_gather(model)
    assert described(layers).endswith("6 x Block, 2 x PargoLayer, 2 x LlamaDecoderLayer")
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    assert gather_sizes(layers)["stage3_prefetch_bucket_size"] == largest


def test_an_llm_that_trains_on_inputs_without_gradient_is_gathered_by_modules(tiny_run):
    """LoRA behind a frozen projector and frozen embeddings."""
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj"]}
    llm = {"mode": "lora", "lr": 1e-3, "lora": lora}
    frozen = build(tiny_run, llm=llm, projector="frozen")
    assert "Llama" not in described(layers_to_gather(frozen))
    assert "Llama" in described(layers_to_gather(build(tiny_run, llm=llm)))


def test_a_layer_that_shares_a_weight_with_another_is_gathered_by_modules():
    one, two, three = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
    assert leaf_layers(nn.ModuleList([one, two, three])) == [one, two, three]
    two[0].weight = three[0].weight
    assert leaf_layers(nn.ModuleList([one, two, three])) == [one]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_trained_layer_whose_input_needs_no_gradient_is_refused_with_what_to_do(by_name):
    """DeepSpeed 0.19.8 would reduce its gradients before they exist."""
    layer = nn.Linear(4, 4)
    watch_inputs([layer])
    layer(torch.zeros(1, 4, requires_grad=True))
    given = torch.zeros(1, 4, requires_grad=by_name)
    with pytest.raises(ValueError, match="set train.zero3_gather: modules"):
        layer(input=given) if by_name else layer(given)
    with torch.no_grad():
        layer(given)
    layer.requires_grad_(False)
    frozen = nn.Linear(4, 4).requires_grad_(False)
    watch_inputs([frozen])
    frozen(given)


@pytest.mark.parametrize(
    "zero, other, said",
    [
        ({"zero_quantized_weights": True}, {}, "quantised ZeRO"),
        ({"zero_quantized_gradients": True}, {}, "quantised ZeRO"),
        ({"stage3_module_granularity_threshold": 1000}, {}, "train.zero3_gather: layers"),
        ({}, {"compile": {"deepcompile": True}}, "compile.deepcompile"),
    ],
)
def test_settings_known_to_be_wrong_are_refused_with_the_reason(tmp_path, zero, other, said):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, **zero}, **other}))
    with pytest.raises(ConfigError, match=said):
        read_deepspeed_json(path)
    assert read_deepspeed_json(ROOT / "ds_configs/zero3.json")["zero_optimization"]["stage"] == 3
