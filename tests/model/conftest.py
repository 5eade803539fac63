"""Tiny random models, on the tokenizer of tests/conftest.py."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import seeing
from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig

from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    ParGoProcessor,
    vision_config_from_transformers,
)

IMAGE_SIZE, VISUAL_TOKENS = 32, 6


@pytest.fixture
def tokenizer(tokenizer_folder):
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def processor(tokenizer) -> ParGoProcessor:
    return ParGoProcessor(tokenizer, image_size=IMAGE_SIZE, visual_tokens=VISUAL_TOKENS)


@pytest.fixture
def make_config(processor):
    """Function -> ParGoConfig: a CLIP of 16 patches, 4 + 2 tokens, a Llama of 2 layers; any field
    may be replaced.
    """

    def make(tied: bool = True, **fields) -> ParGoConfig:
        vocabulary = processor.image_token_id  # so the image token lies just outside
        text = LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, initializer_range=0.3,
            bos_token_id=None, eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )  # fmt: skip
        clip = CLIPVisionConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            image_size=IMAGE_SIZE, patch_size=8,
        )  # fmt: skip
        projector = {
            "partial_tokens": 4,
            "global_tokens": 2,
            "layers": 2,
            "width": 16,
            "heads": 2,
            "output_std": 1.0,
        }
        defaults = {
            "vision_config": vision_config_from_transformers(clip),
            "text_config": text,
            "projector_config": projector,
            "image_token_id": processor.image_token_id,
        }
        return ParGoConfig(**{**defaults, **fields})

    return make


@pytest.fixture
def make_model(make_config):
    """Function -> model in eval mode, the same weights for the same arguments."""

    def make(**fields) -> ParGoForConditionalGeneration:
        torch.manual_seed(0)
        model = ParGoForConditionalGeneration(make_config(**fields)).eval()
        seeing(model.projector)
        return model

    return make


@pytest.fixture
def model(make_model) -> ParGoForConditionalGeneration:
    return make_model()


@pytest.fixture
def image():
    """Function (seed) -> a noisy RGB image."""

    def make(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(noise)

    return make


@pytest.fixture
def conversations():
    """Unequal conversations with 1, 0 and 2 images, the last one of two turns; no last answer."""
    return [
        [{"role": "user", "content": "<image>What colour is it?"}],
        [{"role": "user", "content": "Describe."}],
        [
            {"role": "user", "content": "<image>A square. <image>Describe the picture."},
            {"role": "assistant", "content": "A red square."},
            {"role": "user", "content": "What colour is it?"},
        ],
    ]
