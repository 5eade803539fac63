"""A tiny random ParGo in memory, for the tests of serving and of what is asked of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import seeing
from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig


def tiny_pargo(tokenizer_folder: Path) -> tuple[Any, Any]:
    """(model, processor) in fp32."""
    from pargo_ds.model import (
        ParGoConfig,
        ParGoForConditionalGeneration,
        ParGoProcessor,
        vision_config_from_transformers,
    )

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    processor = ParGoProcessor(tokenizer, image_size=32, visual_tokens=6)
    clip = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=processor.image_token_id, hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    projector = {
        "partial_tokens": 4, "global_tokens": 2, "layers": 2, "width": 16, "heads": 2,
        "output_std": 1.0,
    }  # fmt: skip
    config = ParGoConfig(
        vision_config=vision_config_from_transformers(clip),
        text_config=text,
        projector_config=projector,
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(0)
    model = ParGoForConditionalGeneration(config).eval()
    seeing(model.projector)
    return model, processor
