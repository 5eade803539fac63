"""What follows a training is tried before it, on a tiny copy of the run's own model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from made_checkpoint import run_of, trained_model, write_checkpoint
from tiny import merged
from transformers import AutoConfig, GenerationConfig

from pargo_ds import assembly
from pargo_ds.config import RunConfig, parse_config
from pargo_ds.convert.hf_folder import rehash
from pargo_ds.convert.trial import trial
from pargo_ds.convert.zero.zero_to_hf import convert
from pargo_ds.errors import ConfigError
from pargo_ds.model import ParGoForConditionalGeneration

VICUNA = {
    "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0,
    "temperature": 0.9, "top_p": 0.6, "transformers_version": "4.31.0",
}  # fmt: skip
"""generation_config.json of lmsys/vicuna-7b-v1.5."""


def with_settings(llm: Path, folder: Path, settings: dict) -> Path:
    """A copy of a published LLM with other settings of generation."""
    shutil.copytree(llm, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def with_lora(run: RunConfig, *targets: str) -> RunConfig:
    return parse_config(
        merged(
            run.model_dump(mode="json"), {"train": {"llm": {"lora": {"targets": list(targets)}}}}
        )
    )


def tried(run: RunConfig) -> str:
    processor = assembly.build_processor(run)
    before = processor.fingerprint()
    said = trial.try_export(run, processor)
    assert processor.fingerprint() == before, (
        "the trial changed the processor that the run goes on with"
    )
    return said


@pytest.mark.parametrize("vision, mode", [("timm", "frozen"), ("clip", "full"), ("timm", "lora")])
def test_a_run_that_can_be_exported_is_let_through(
    tiny_run, published_llm, timm_file, clip_folder, vision, mode
):
    run = run_of(
        tiny_run, published_llm(True), {"timm": timm_file, "clip": clip_folder}[vision], mode
    )
    said = tried(run)
    assert "reloaded and asked" in said
    assert ("with LoRA apart and merged" in said) == (mode == "lora")


def test_a_run_that_starts_from_an_export_is_tried_with_it(
    tiny_run, published_llm, timm_file, tmp_path
):
    first = run_of(tiny_run, published_llm(False), timm_file, "frozen")
    convert(
        write_checkpoint(first, trained_model(first), tmp_path / "step_00000003"),
        tmp_path / "start",
    )
    run = run_of(
        tiny_run, published_llm(False), timm_file, "full", start_from=str(tmp_path / "start")
    )
    assert "reloaded and asked" in tried(run)
    body = json.loads((tmp_path / "start/processor_config.json").read_text())
    (tmp_path / "start/processor_config.json").write_text(json.dumps(body | {"visual_tokens": 9}))
    rehash(tmp_path / "start")
    with pytest.raises(ConfigError, match="using its export fails: ValueError: 9 image tokens"):
        tried(run)


def test_the_tiny_copy_has_the_runs_options_tokens_and_files(
    tiny_run, published_llm, timm_file, tmp_path
):
    llm = with_settings(published_llm(True), tmp_path / "llm", VICUNA)
    options = {"cascade": "each_side", "norm": "post", "query_positions": True, "norm_eps": 1e-12}
    run = run_of(tiny_run, llm, timm_file, "lora", projector=options)
    processor = assembly.build_processor(run)
    (tmp_path / "small").mkdir()
    small = trial.tiny_run(run, processor, tmp_path / "small")
    assert small.projector.model_dump(include=set(options)) == options
    assert assembly.visual_tokens(small) == assembly.visual_tokens(run)
    assert (small.projector.width, small.train) == (16, run.train)
    assert assembly.vision_config(small, offline=False).num_patches == 16
    assert assembly.build_processor(small).fingerprint() == processor.fingerprint()
    copied = Path(small.llm.name) / "generation_config.json"
    assert json.loads(copied.read_text()) == VICUNA
    assert sum(path.stat().st_size for path in (tmp_path / "small").rglob("*.safetensors")) < 3e6


def test_vicunas_settings_are_repaired_said_and_stay_greedy(
    tiny_run, published_llm, timm_file, tmp_path, caplog
):
    llm = with_settings(published_llm(True), tmp_path / "llm", VICUNA)
    run = run_of(tiny_run, llm, timm_file, "frozen")
    assert "reloaded and asked" in tried(run)
    assert "left out of the LLM's generation settings: temperature 0.9, top_p 0.6" in caplog.text
    caplog.clear()
    convert(write_checkpoint(run, trained_model(run), tmp_path / "step_00000003"), tmp_path / "out")
    assert "temperature 0.9, top_p 0.6" in caplog.text
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert found.max_length == 4096
    assert not found.do_sample
    assert not {"temperature", "top_p"} & found.to_diff_dict().keys()
    ParGoForConditionalGeneration.from_pretrained(tmp_path / "out").save_pretrained(
        tmp_path / "again"
    )


def test_settings_that_generate_refuses_end_the_run_before_it_trains(
    tiny_run, published_llm, timm_file, tmp_path
):
    llm = with_settings(
        published_llm(True), tmp_path / "llm", {"do_sample": True, "temperature": 0.0}
    )
    run = run_of(tiny_run, llm, timm_file, "frozen")
    with pytest.raises(
        ConfigError, match="using its export fails: ValueError: .*temperature.* strictly positive"
    ):
        tried(run)


def test_lora_that_training_passes_by_but_merging_applies_is_refused(
    tiny_run, tokenizer_folder, timm_file, tmp_path
):
    """LongCat's router reads the weight of its linear layer and never calls it."""
    config = AutoConfig.for_model("longcat_flash", vocab_size=400, bos_token_id=1, eos_token_id=1)
    config.save_pretrained(tmp_path / "llm")
    shutil.copytree(tokenizer_folder, tmp_path / "llm", dirs_exist_ok=True)
    run = run_of(tiny_run, tmp_path / "llm", timm_file, "lora")
    with pytest.raises(ConfigError, match="merging its LoRA fails: ValueError: its logits differ"):
        tried(with_lora(run, "classifier"))


def test_another_value_of_any_parameter_or_buffer_is_named(
    tiny_run, published_llm, timm_file, tmp_path
):
    run = run_of(tiny_run, published_llm(True), timm_file, "full")
    model = trained_model(run)
    model.llm.model.rotary_emb.inv_freq = (
        model.llm.model.rotary_emb.inv_freq.bfloat16()
    )  # as older versions trained
    convert(write_checkpoint(run, model, tmp_path / "step_00000003"), tmp_path / "out")
    asked = trial.question(assembly.build_processor(run))
    with pytest.raises(
        ValueError, match=r"llm.model.rotary_emb.inv_freq \(torch.float32 .*, torch.bfloat16 "
    ):
        trial.use(tmp_path / "out", model.bfloat16(), asked)


def test_it_leaves_no_files_and_draws_no_random_numbers(
    tiny_run, published_llm, timm_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = run_of(tiny_run, published_llm(True), timm_file, "frozen")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tried(run)
    assert torch.equal(torch.rand(3), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_fault_of_the_run(tiny_run, published_llm, timm_file, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trial.zero_to_hf, "convert", full)
    with pytest.raises(OSError, match="No space left"):
        tried(run_of(tiny_run, published_llm(True), timm_file, "frozen"))


def test_dry_run_names_the_file_that_it_would_need(tiny_run):
    run = parse_config(merged(tiny_run, {"llm": {"name": "someone/never-fetched"}}))
    said = trial.export_says(run)
    assert said.startswith(
        "export was not tried: tokenizer_config.json of someone/never-fetched is not on this machine"
    )
    run = parse_config(merged(tiny_run, {"start_from": "no/such/folder"}))
    assert "no/such/folder/config.json is not on this machine" in trial.export_says(run)


def test_buffers_that_training_keeps_in_fp32_are_exported_so(
    tiny_run, tokenizer_folder, timm_file, tmp_path
):
    """GLM-4.5's correction of its router; in a bf16 run a conversion to bf16 was refused as another
    weight.
    """
    sizes = {
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    }
    AutoConfig.for_model(
        "glm4_moe", vocab_size=400, n_group=1, topk_group=1, **sizes
    ).save_pretrained(tmp_path / "llm")
    shutil.copytree(tokenizer_folder, tmp_path / "llm", dirs_exist_ok=True)
    assert "reloaded and asked" in tried(run_of(tiny_run, tmp_path / "llm", timm_file, "full"))


@pytest.mark.parametrize(
    "family", ["jamba", "falcon_h1", "qwen3_next", "gpt_oss", "qwen2_moe", "gemma3_text"]
)
def test_families_with_states_experts_and_buffers_of_their_own_are_let_through(
    tiny_run, tokenizer_folder, timm_file, tmp_path, family
):
    AutoConfig.for_model(family, vocab_size=400, eos_token_id=1, pad_token_id=1).save_pretrained(
        tmp_path / "llm"
    )
    shutil.copytree(tokenizer_folder, tmp_path / "llm", dirs_exist_ok=True)
    run = run_of(tiny_run, tmp_path / "llm", timm_file, "full")
    assert "reloaded and asked" in tried(run)
