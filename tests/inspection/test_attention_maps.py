"""The attention that is drawn is the one that the projector computes with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import seeing
from transformers import CLIPVisionConfig, LlamaConfig

from pargo_ds.inspection.attention_maps import (
    attention_figure,
    attention_over_patches,
    chosen_tokens,
)
from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    vision_config_from_transformers,
)

PARGO = {"partial_tokens": 3, "global_tokens": 2, "layers": 2, "width": 16, "heads": 1}
PROJECTORS = {
    "raster": PARGO,
    "block": {**PARGO, "partial_tokens": 4, "grouping": "block"},
    "a token for each patch": {**PARGO, "partial_tokens": 16, "global_tokens": 0},
    "only global": {**PARGO, "partial_tokens": 0},
    "qformer": {"type": "qformer", "tokens": 5, "layers": 2, "width": 16, "heads": 1, "ffn_width": 32},
}  # fmt: skip


def model_with(projector: dict) -> ParGoForConditionalGeneration:
    """A random model of 16 patches, in float64."""
    config = ParGoConfig(
        vision_config=vision_config_from_transformers(
            CLIPVisionConfig(
                hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                image_size=32, patch_size=8,
            )
        ),
        text_config=LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4,
        ),
        projector_config=projector,
        image_token_id=39,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ParGoForConditionalGeneration(config).eval()
    seeing(model.projector)
    return model.double()


@pytest.mark.parametrize("projector", PROJECTORS.values(), ids=PROJECTORS)
def test_weights_times_values_are_the_output_of_the_last_attention(projector):
    # One head, so that the mean over heads is that head's. float64 in, float32 scores: 1e-6.
    model = model_with(projector)
    last = [module for name, module in model.projector.named_modules()
            if name.endswith(("perception", "cross_attention"))][-1]  # fmt: skip
    kept: dict[str, torch.Tensor] = {}
    last.value.register_forward_hook(lambda module, inputs, out: kept.update(values=out))
    last.output.register_forward_hook(lambda module, inputs, out: kept.update(taken=inputs[0]))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    weights = attention_over_patches(model, pixels)
    assert weights.shape == (2, model.config.visual_tokens, 16)
    assert torch.allclose(weights.sum(-1), torch.ones(2, weights.shape[1]), atol=1e-6)
    assert torch.allclose(weights.double() @ kept["values"], kept["taken"], atol=1e-6)
    assert weights.std() > 0


def test_a_projector_that_does_not_attend_has_none():
    model = model_with({"type": "adaptive_pool", "tokens": 4})
    assert attention_over_patches(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8)) is None


def test_tokens_of_both_kinds_are_drawn_each_under_its_name():
    assert chosen_tokens(36, 32) == [4, 12, 20, 28, 32, 33, 34, 35]
    assert chosen_tokens(3, 2) == [0, 1, 2]
    assert chosen_tokens(36, 0) == [4, 13, 22, 31]
    weights = np.random.default_rng(0).random((2, 36, 64))
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "white")]
    figure = attention_figure(images, weights, 32, "a title")
    names = [f"partial {n}" for n in (4, 12, 20, 28)] + [f"global {n}" for n in range(4)]
    assert [axes.get_title() for axes in figure.axes] == 2 * ["", *names]
    with pytest.raises(ValueError, match="fill no square"):
        attention_figure(images, weights[:, :, :60], 32, "")
