"""LoRA on a weight that has a second use: what comes out is what was trained, or training is
refused.
"""

from __future__ import annotations

import pytest
import torch
import yaml
from made_checkpoint import run_of, trained_model, write_checkpoint
from peft import PeftModel
from PIL import Image
from tiny import merged, metrics
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
)

from pargo_ds import assembly
from pargo_ds.assembly.freezing import add_lora, all_linear
from pargo_ds.config import parse_config
from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.megatron.hf_to_megatron import to_megatron
from pargo_ds.convert.megatron.megatron_to_hf import MegatronWeights
from pargo_ds.convert.verify import compare
from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights
from pargo_ds.convert.zero.zero_to_hf import convert
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor
from pargo_ds.train_sections import PartSection

TOLERANCE = 1e-5
"""Per unit of the largest logit.

Measured: at most 2.3e-7; while the weights stayed tied 0.7 to 3.5.
"""


@pytest.fixture(
    params=[["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]], ids="+".join
)
def trained(request, tiny_run, published_llm, timm_file, tmp_path):
    """(checkpoint of a tied LLM with LoRA on these, its model in memory in fp32)."""
    run = run_of(tiny_run, published_llm(True), timm_file, "lora")
    targets = {"train": {"llm": {"lora": {"targets": request.param}}}}
    run = parse_config(merged(run.model_dump(mode="json"), targets))
    model = trained_model(run)
    checkpoint = write_checkpoint(run, model, tmp_path / "step_00000003")
    return checkpoint, model.float().eval()


def logits(model, processor) -> torch.Tensor:
    turns = [{"role": "user", "content": "<image>What colour is it?"}]
    image = Image.new("RGB", (64, 64), "red")
    asked = processor.apply_chat_template(turns, images=image, tokenize=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**asked).logits
    return found[torch.isfinite(found)]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    worst = float((found - expected).abs().max() / expected.abs().max())
    assert worst < TOLERANCE, worst


def test_the_merged_export_is_the_model_that_trained(trained, tmp_path):
    checkpoint, model = trained
    convert(checkpoint, tmp_path / "out", merge_lora=True, dtype=torch.float32)
    processor = ParGoProcessor.from_pretrained(tmp_path / "out")
    export, info = ParGoForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same(logits(export, processor), logits(model, processor))
    untied = export.get_input_embeddings().weight is not export.get_output_embeddings().weight
    assert untied
    assert (
        export.config.tie_word_embeddings is export.config.text_config.tie_word_embeddings is False
    )


def test_so_is_the_checkpoint_for_megatron(trained, tmp_path):
    checkpoint, _ = trained
    convert(checkpoint, tmp_path / "out", merge_lora=True)
    to_megatron(CheckpointWeights(checkpoint), tmp_path / "megatron")
    there = MegatronWeights(tmp_path / "megatron")
    assert compare(HFFolder(tmp_path / "out"), there).fits()
    assert {"llm.lm_head.weight", "llm.model.embed_tokens.weight"} <= set(there.specs)


def test_so_is_what_evaluation_loads_with_the_adapter_apart(trained, tmp_path):
    checkpoint, model = trained
    convert(checkpoint, tmp_path / "out", dtype=torch.float32)
    export, processor = load_exported(tmp_path / "out", "cpu")
    assert export.config.text_config.tie_word_embeddings
    assert_same(logits(export, processor), logits(model, processor))
    by_hand = ParGoForConditionalGeneration.from_pretrained(tmp_path / "out")
    PeftModel.from_pretrained(by_hand.llm, tmp_path / "out/adapter")
    assert_same(logits(by_hand, processor), logits(model, processor))


def lora(*targets: str) -> PartSection:
    return PartSection(mode="lora", lr=1e-3, lora={"rank": 2, "alpha": 4, "targets": list(targets)})


@pytest.fixture
def llm() -> nn.Module:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=50))


def test_other_layers_that_share_a_weight_are_refused_before_training(llm):
    first, second = llm.model.layers
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight
    with pytest.raises(
        ValueError,
        match=r"layers.0.self_attn.q_proj shares its weight with model.layers.1.self_attn",
    ):
        add_lora(llm, lora("q_proj"))


def test_a_layer_that_lies_in_two_places_is_refused_where_peft_wraps_one(llm):
    first, second = llm.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    with pytest.raises(ValueError, match="shares its weight with"):
        add_lora(llm, lora("up_proj"))


def test_a_block_that_is_used_twice_may_have_an_adapter(llm):
    first, second = llm.model.layers
    second.mlp = first.mlp
    add_lora(llm, lora("up_proj"))
    assert second.mlp.up_proj is first.mlp.up_proj
    assert sum("lora_A" in name for name, _ in llm.named_parameters()) == 1


def test_all_linear_is_gpt2s_layers_too():
    gpt2 = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=50)
    )
    assert all_linear(gpt2) == ["c_attn", "c_fc", "c_proj"]


def test_all_linear_names_layers_whole_where_others_have_the_same_last_name():
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=50))
    llama.model.layers[0].mlp.extra = nn.ModuleList([nn.Linear(32, 32, bias=False)])
    names = all_linear(llama)
    assert "model.layers.0.mlp.extra.0" in names
    assert "0" not in names
    assert "q_proj" in names


def test_all_linear_leaves_out_what_mamba_reads_without_calling_it():
    config = MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=8, vocab_size=50)
    assert all_linear(AutoModelForCausalLM.from_config(config)) == ["in_proj"]


def test_all_linear_has_subclasses_of_linear_layers():
    config = FalconConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=50)
    assert "query_key_value" in all_linear(AutoModelForCausalLM.from_config(config))


def test_all_linear_leaves_out_routers_that_return_more_than_a_tensor():
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "intermediate_size_mlp": 48,
        "num_hidden_layers": 1,
    }
    config = Llama4TextConfig(
        **sizes, num_attention_heads=4, head_dim=8, num_local_experts=2, vocab_size=50
    )
    llama4 = AutoModelForCausalLM.from_config(config)
    assert "q_proj" in all_linear(llama4)
    assert "router" not in all_linear(llama4)


@pytest.mark.slow
def test_two_ranks_train_such_adapters_and_what_comes_out_has_their_loss(train, tmp_path):
    """A real run under ZeRO 3; held-out loss at its end against that of the merged export, on the
    same packs.
    """
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["embed_tokens", "lm_head", "q_proj"]}
    llm = {"mode": "lora", "lr": 3e-2, "lora": lora, "weight_decay": 0.0}
    run = train(
        {"train": {"steps": 6, "warmup_steps": 0, "llm": llm}, "validation": {"every": 6}}, ranks=2
    )
    reported = [line["validation_loss"] for line in metrics(run) if "validation_loss" in line][-1]
    convert(run, tmp_path / "out", merge_lora=True)
    model = ParGoForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    settings = parse_config(yaml.safe_load((run / "config.yaml").read_text()))
    processor = ParGoProcessor.from_pretrained(tmp_path / "out")
    packing = model.packing(settings.batch.tokens_per_pack)
    packs = assembly.build_loaders(settings, processor, packing)[1]
    with torch.no_grad():
        total = sum(
            float(model(**pack.model_inputs("cpu")).loss) * pack.num_targets for pack in packs
        )
    # Measured: 1.7e-7 apart; while the weights stayed tied 0.18.
    assert total / sum(pack.num_targets for pack in packs) == pytest.approx(reported, abs=1e-5)
    assert model.config.text_config.tie_word_embeddings is False
