"""A run trains the model that its export will be: the same types, rotary frequencies included."""

import json

import pytest
import torch
from tiny import merged

from pargo_ds import assembly
from pargo_ds.config import parse_config
from pargo_ds.errors import ConfigError
from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.training.engine import buffers_kept, move_buffers

GEMMA = {
    "model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400,
}  # fmt: skip
ENCODERS = {
    "rotary ViT": {"name": "eva02_tiny_patch14_224", "image_size": 56},
    "batch norms": {"name": "test_efficientnet", "image_size": 128, "feature_norm": False},
}


def as_held(model):
    return {
        name: (value.dtype, value)
        for name, value in [*model.named_buffers(), *model.named_parameters()]
    }


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_in_bf16_every_weight_and_buffer_has_the_type_and_value_of_the_export(
    tiny_run, tmp_path, encoder, architecture
):
    changes = {"train": {"precision": "bf16"}, "vision": ENCODERS[encoder]}
    if architecture == "gemma3_text":
        changes["llm"] = {"architecture": GEMMA}
        tiny_run = merged(tiny_run, {"llm": {"architecture": None}})
    run = parse_config(merged(tiny_run, changes))
    model = assembly.build_model(run, assembly.build_processor(run), None)
    with buffers_kept(model):
        model.bfloat16()  # as deepspeed.initialize does
    model.save_pretrained(tmp_path)
    loaded = ParGoForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    here, there = as_held(model), as_held(loaded)
    assert here.keys() == there.keys()
    different = [
        n for n in here if here[n][0] != there[n][0] or not torch.equal(here[n][1], there[n][1])
    ]
    assert different == []
    assert any(dtype == torch.float32 for dtype, _ in here.values())  # rotary frequencies


def test_all_buffers_go_to_the_device_of_the_rank_and_weights_stay_where_they_are(tiny_run):
    """DeepSpeed moves none in a run whose LLM was partitioned as it was loaded; the device here is
    one that every machine has.
    """
    run = parse_config(merged(tiny_run, {"vision": ENCODERS["batch norms"]}))
    model = assembly.build_model(run, assembly.build_processor(run), None)
    move_buffers(model, torch.device("meta"))
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert any("running_mean" in name for name, _ in model.named_buffers())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            {"quantization_config": {"quant_method": "mxfp4"}},
            r"llm.name: the weights of .* are quantised \(mxfp4\)",
        ),
        (
            {"model_type": "exaone4", "sliding_window_pattern": [3]},
            r"does not take (.|\n)*TypeError",
        ),
    ],
)
def test_a_published_configuration_that_cannot_train_is_one_error_before_weights_are_looked_for(
    tiny_run, tmp_path, written, message
):
    architecture = tiny_run["llm"]["architecture"]
    (tmp_path / "config.json").write_text(json.dumps({**architecture, **written}))
    llm = {"name": str(tmp_path), "weights": "pretrained", "architecture": None}
    run = parse_config(merged(tiny_run, {"llm": llm}))
    with pytest.raises(ConfigError, match=message):
        assembly.prove_llm(run, assembly.llm_config(run))
