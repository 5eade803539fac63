"""Joined neighbours beside transformers' InternVL and Qwen2.5-VL."""

from __future__ import annotations

import pytest
from projector_oracles import BOUND, LLM_DIM, VISION_DIM, by_prefix, compare_modules, made
from torch import nn
from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config
from transformers.models.internvl.modeling_internvl import (
    InternVLModel,
    InternVLMultiModalProjector,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger

from pargo_ds.model import projector_config


class InternVL(nn.Module):
    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale
        config = InternVLConfig(
            vision_config=InternVLVisionConfig(hidden_size=VISION_DIM),
            text_config=Qwen2Config(hidden_size=LLM_DIM),
            downsample_ratio=1 / scale,
        )
        self.projector = InternVLMultiModalProjector(config)

    def forward(self, patches):
        side = int(patches.shape[1] ** 0.5)
        grid = patches.reshape(2, side, side, VISION_DIM)
        shuffled = InternVLModel.pixel_shuffle(None, grid, scale_factor=1 / self.scale)
        return self.projector(shuffled.reshape(2, -1, self.scale**2 * VISION_DIM))


@pytest.mark.parametrize(("scale", "patches"), [(2, 16), (4, 64)])
def test_pixel_shuffle_is_internvls(scale, patches):
    projector = made("pixel_shuffle", patches, scale=scale)
    pairs = {"norm": "layer_norm", "hidden.0": "linear_1", "output": "linear_2"}
    names = by_prefix({ours: f"projector.{theirs}" for ours, theirs in pairs.items()}, projector)
    compare_modules(projector, InternVL(scale), names, BOUND)


class QwenVL(nn.Module):
    """The merger on patches in its own order, in which the four of a token follow each other."""

    def __init__(self):
        super().__init__()
        self.merger = Qwen2_5_VLPatchMerger(dim=LLM_DIM, context_dim=VISION_DIM)

    def forward(self, patches):
        order = [
            (2 * row + inner_row) * 4 + 2 * column + inner_column
            for row in range(2)
            for column in range(2)
            for inner_row in range(2)
            for inner_column in range(2)
        ]
        return self.merger(patches[:, order]).reshape(2, -1, LLM_DIM)


def test_patch_merger_is_qwens():
    projector = made("patch_merger")
    pairs = {"norm": "ln_q", "hidden.0": "mlp.0", "output": "mlp.2"}
    names = by_prefix({ours: f"merger.{theirs}" for ours, theirs in pairs.items()}, projector)
    # Qwen's RMSNorm rounds to float32 inside. Measured: 1.3e-7 in tokens, 4.4e-7 in gradients.
    compare_modules(projector, QwenVL(), names, 2e-6)


@pytest.mark.parametrize("type", ["pixel_shuffle", "patch_merger", "token_packer"])
def test_a_grid_that_the_scale_does_not_divide_names_the_nearest(type):
    with pytest.raises(
        ValueError, match="scale 2 does not divide .* 27 x 27 .* nearest is 28 x 28"
    ):
        projector_config({"type": type}).visual_tokens(729)
