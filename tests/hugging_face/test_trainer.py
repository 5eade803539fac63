"""An exported folder in the hands of Hugging Face users: Trainer and PEFT, on chats about drawn
images.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ROOT
from transformers_lines import LINES, line_path

SCRIPT = Path(__file__).with_name("trains_an_export.py")


@pytest.fixture
def export(tokenizer_folder, tmp_path) -> Path:
    """A tiny model and processor, saved; the image token lies in the vocabulary, as in padded ones."""
    from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig

    from pargo_ds.model import (
        ParGoConfig,
        ParGoForConditionalGeneration,
        ParGoProcessor,
        vision_config_from_transformers,
    )

    processor = ParGoProcessor(
        AutoTokenizer.from_pretrained(tokenizer_folder), image_size=32, visual_tokens=6
    )
    text = LlamaConfig(
        vocab_size=processor.image_token_id + 8, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=None,
        eos_token_id=processor.tokenizer.eos_token_id, pad_token_id=processor.tokenizer.pad_token_id,
    )  # fmt: skip
    clip = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    config = ParGoConfig(
        vision_config=vision_config_from_transformers(clip),
        text_config=text,
        projector_config={
            "partial_tokens": 4,
            "global_tokens": 2,
            "layers": 1,
            "width": 16,
            "heads": 2,
        },
        image_token_id=processor.image_token_id,
    )
    ParGoForConditionalGeneration(config).save_pretrained(tmp_path / "export")
    processor.save_pretrained(tmp_path / "export")
    return tmp_path / "export"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["trainer", "lora", "prompt_tuning", "loading"])
@pytest.mark.parametrize("version", LINES)
def test_an_export_is_trained_and_adapted_by_hugging_faces_means(version, part, export, tmp_path):
    path = os.pathsep.join(
        [*line_path(version), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    )
    environment = os.environ | {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_DISABLED": "true"}
    command = [sys.executable, str(SCRIPT), part, str(export), str(tmp_path / "work")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
