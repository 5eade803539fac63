"""Exported folder -> one training step that changes nothing -> checkpoint -> exported folder: every
bit comes back.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import draw

from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.verify import compare, compare_logits

# AdamW's update at this rate is far below the smallest number of fp32, so that lr 0 (which run
# files refuse) is meant.
NO_RATE = 1e-300
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"}
LLAMA_GROUPS = {"model_type": "llama", "num_key_value_heads": 2}
TIED_LLAMA = {**LLAMA_GROUPS, "tie_word_embeddings": True}
BIASED_QWEN2 = {"model_type": "qwen2", "num_key_value_heads": 2}
TIED_QWEN2 = {**BIASED_QWEN2, "tie_word_embeddings": True}
QWEN3 = {"model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 2}
BF16 = {"dtype": torch.bfloat16}

# Every number of ranks meets every ZeRO stage; families, precisions, what trains and the
# projector's output take turns.
CASES = [
    pytest.param(1, 1, TIED_LLAMA, "full", id="1 rank, ZeRO 1, tied Llama"),
    pytest.param(
        1, 2, {**BIASED_QWEN2, **BF16}, "lora", id="1 rank, ZeRO 2, Qwen2 with LoRA, bf16"
    ),
    pytest.param(1, 3, {**QWEN3, **BF16}, "full", id="1 rank, ZeRO 3, Qwen3, bf16"),
    pytest.param(2, 1, {**TIED_QWEN2, **BF16}, "full", id="2 ranks, ZeRO 1, tied Qwen2, bf16"),
    pytest.param(2, 2, QWEN3, "frozen", id="2 ranks, ZeRO 2, frozen Qwen3"),
    pytest.param(
        2, 3, {**TIED_LLAMA, **BF16}, "lora", id="2 ranks, ZeRO 3, tied Llama with LoRA, bf16"
    ),
    pytest.param(4, 1, LLAMA_GROUPS, "lora", id="4 ranks, ZeRO 1, Llama with LoRA"),
    pytest.param(4, 2, {**LLAMA_GROUPS, **BF16}, "full", id="4 ranks, ZeRO 2, Llama, bf16"),
    pytest.param(4, 3, TIED_QWEN2, "full", id="4 ranks, ZeRO 3, tied Qwen2"),
]


def settings(export, zero_file, stage: int, family: dict, llm: str) -> dict:
    """What the tiny run has to change to train that folder once, at no rate."""
    zero_file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    config = HFFolder(export).config
    rate = {"lr": NO_RATE, "weight_decay": 0.1}
    trained = (
        llm
        if llm == "frozen"
        else {"mode": llm, **rate, **({"lora": LORA} if llm == "lora" else {})}
    )
    return {
        "start_from": str(export),
        "deepspeed": str(zero_file),
        "vision": {"library": "transformers", "name": config.vision_config.name, "image_size": 32},
        "projector": {
            "partial_tokens": 4,
            "global_tokens": 2,
            "layers": 2,
            "width": 16,
            "heads": 2,
            "soft_prompt": config.projector_config.soft_prompt,
        },
        "train": {
            "projector": {"mode": "full", **rate},
            "llm": trained,
            "steps": 1,
            "warmup_steps": 0,
            "precision": "bf16" if "dtype" in family else "fp32",
        },
    }


@pytest.mark.slow
@pytest.mark.parametrize("ranks, stage, family, llm", CASES)
def test_every_bit_comes_back(train, convert, make_export, tmp_path, ranks, stage, family, llm):
    export = make_export(tmp_path / "export", family, soft_prompt=stage != ranks)
    run = train(settings(export, tmp_path / "zero.json", stage, family, llm), ranks)
    merged = convert(
        "zero-to-hf", run, tmp_path / "back", *(["--merge-lora"] if llm == "lora" else [])
    )
    assert merged.returncode == 0, merged.stderr
    back = HFFolder(tmp_path / "back")
    comparison = compare(HFFolder(export), back)
    assert comparison.fits(), comparison
    assert comparison.tensors == len(HFFolder(export).specs)
    if llm == "lora":
        apart = convert("zero-to-hf", run, tmp_path / "apart")
        assert apart.returncode == 0, apart.stderr
        weights = load_file(tmp_path / "apart/model.safetensors")
        assert weights.keys() == back.specs.keys()
        assert [name for name in weights if not torch.equal(weights[name], back.read(name))] == []
        adapter = load_file(tmp_path / "apart/adapter/adapter_model.safetensors")
        assert {name.split(".")[-2] for name in adapter} == {"lora_A", "lora_B"}


@pytest.mark.slow
def test_logits_come_back(train, convert, make_export, tmp_path):
    (tmp_path / "image.png").write_bytes(draw("red", 4))
    export = make_export(tmp_path / "export", TIED_QWEN2)
    run = train(settings(export, tmp_path / "zero.json", 3, TIED_QWEN2, "full"), 2)
    for command, source, out in (
        ("zero-to-hf", run, tmp_path / "back"),
        ("zero-to-megatron", run, tmp_path / "megatron"),
        ("megatron-to-hf", tmp_path / "megatron", tmp_path / "back again"),
    ):
        process = convert(command, source, out)
        assert process.returncode == 0, process.stderr
    first = HFFolder(export)
    for folder in ("back", "back again"):
        assert (
            compare_logits(
                first, HFFolder(tmp_path / folder), tmp_path / "image.png", "What is it?"
            )
            == 0.0
        )
