"""What follows a training is tried before it, on a tiny copy of the run's own model."""

from __future__ import annotations

import time

import pytest
from made_checkpoint import run_of

from pargo_ds.convert.trial import trial
from pargo_ds.training import assembly

VICUNA = {
    "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0,
    "temperature": 0.9, "top_p": 0.6, "transformers_version": "4.31.0",
}  # fmt: skip


@pytest.mark.parametrize("mode", ["frozen", "full", "lora"])
@pytest.mark.parametrize("vision", ["timm", "clip"])
def test_a_run_that_can_be_exported_is_let_through(tiny_run, published_llm, timm_file, clip_folder, mode, vision):
    run = run_of(tiny_run, published_llm(True), {"timm": timm_file, "clip": clip_folder}[vision], mode)
    begin = time.time()
    said = trial.try_export(run, assembly.build_processor(run))
    print(said, time.time() - begin)
    assert "reloaded and asked" in said
