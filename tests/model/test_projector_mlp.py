"""LLaVA's projectors, and ParGo's baseline over joined neighbours."""

from __future__ import annotations

import pytest
from projector_oracles import (
    BOUND,
    LLM_DIM,
    VISION_DIM,
    by_prefix,
    compare_function,
    compare_modules,
    made,
)
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from pargo_ds.model import projector_config


def test_linear_is_one_linear():
    names = {"output.weight": "weight", "output.bias": "bias"}
    compare_modules(made("linear"), nn.Linear(VISION_DIM, LLM_DIM), names, BOUND)


def test_mlp_is_llavas():
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=VISION_DIM),
        text_config=LlamaConfig(hidden_size=LLM_DIM),
    )
    projector = made("mlp")
    names = by_prefix({"hidden.0": "linear_1", "output": "linear_2"}, projector)
    compare_modules(projector, LlavaMultiModalProjector(config), names, BOUND)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_joined_neighbours_are_the_releases_baselines(depth):
    """bytedance/ParGo: `view(bs, patches / 4, width * 4)`, then its linear or its mlp."""

    def oracle(patches, w):
        x = patches.reshape(2, 4, 4 * VISION_DIM)
        for layer in range(depth - 1):
            at = f"hidden.{2 * layer}"
            x = nn.functional.gelu(x @ w[f"{at}.weight"].T + w[f"{at}.bias"])
        return x @ w["output.weight"].T + w["output.bias"]

    compare_function(made("mlp_concat", depth=depth), oracle, BOUND)


def test_neighbours_that_do_not_divide_the_patches_name_the_nearest_number():
    with pytest.raises(ValueError, match="joined 5 does not divide 576 patches; .* is 4"):
        projector_config({"type": "mlp_concat", "joined": 5}).visual_tokens(576)
