"""A tiny random ParGo model and a few samples with images."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import seeing
from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig

from pargo_ds.data.shards.schema import Sample
from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    ParGoProcessor,
    vision_config_from_transformers,
)


@pytest.fixture
def processor(tokenizer_folder) -> ParGoProcessor:
    return ParGoProcessor(
        AutoTokenizer.from_pretrained(tokenizer_folder), image_size=32, visual_tokens=6
    )


@pytest.fixture
def model(processor) -> ParGoForConditionalGeneration:
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=processor.image_token_id, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    clip = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    config = ParGoConfig(
        vision_config=vision_config_from_transformers(clip),
        text_config=text,
        projector_config={
            "partial_tokens": 4, "global_tokens": 2, "layers": 2, "width": 16, "heads": 2, "output_std": 1.0
        },
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ParGoForConditionalGeneration(config).eval()
    seeing(model.projector)
    return model


@pytest.fixture
def samples() -> list[Sample]:
    """Four scenes of noise with a caption and two questions each, of unequal length."""
    made = []
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, format="PNG")
        questions = [
            {
                "question": "What colour is it?",
                "answer": "red",
                "type": "colour",
                "size": "salient",
            },
            {
                "question": "Describe." + " A red square." * number,
                "answer": "A",
                "type": "naming",
                "size": "small",
            },
        ]
        made.append(
            Sample(
                id=f"scene-{number}",
                images=[file.getvalue()],
                captions={"coarse": "A square.", "detailed": "A red square." * (number + 1)},
                meta={"questions": questions},
            )
        )
    return made
