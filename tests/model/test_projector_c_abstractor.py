"""The C-Abstractor beside timm's RegStage, put together as Honeybee does."""

from __future__ import annotations

import pytest
import torch
from projector_oracles import BOUND, LLM_DIM, VISION_DIM, compare_modules, made
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import nn

from pargo_ds.model import projector_config


class Oracle(nn.Module):
    def __init__(self, width: int, depth: int, side: int):
        super().__init__()
        block = {"stride": 1, "dilation": 1, "act_layer": nn.SiLU, "norm_layer": LayerNorm2d}
        self.pos_emb = nn.Parameter(torch.zeros(1, 16, VISION_DIM))
        self.net = nn.Sequential(
            RegStage(depth, VISION_DIM, width, **block),
            nn.AdaptiveAvgPool2d((side, side)),
            RegStage(depth, width, width, **block),
        )
        self.readout = nn.Sequential(
            nn.Linear(width, LLM_DIM), nn.SiLU(), nn.Linear(LLM_DIM, LLM_DIM)
        )

    def forward(self, patches):
        x = patches + self.pos_emb
        x = self.net(x.reshape(2, 4, 4, -1).permute(0, 3, 1, 2))
        return self.readout(x.permute(0, 2, 3, 1).flatten(1, 2))


@pytest.mark.parametrize("width", [VISION_DIM, 8])
def test_it_is_honeybees_c_abstractor(width):
    projector = made("c_abstractor", tokens=9, depth=2, width=width)
    oracle = Oracle(width, 2, 3)
    # Both make their modules in the order of the computation; shapes are checked by the copy.
    ours, theirs = ([n for n, _ in module.named_parameters()] for module in (projector, oracle))
    compare_modules(projector, oracle, dict(zip(ours, theirs, strict=True)), BOUND)


def test_tokens_that_fill_no_square_name_the_nearest_number():
    with pytest.raises(ValueError, match="found 288 visual tokens .* the nearest is 289"):
        projector_config({"type": "c_abstractor", "tokens": 288}).visual_tokens(576)
