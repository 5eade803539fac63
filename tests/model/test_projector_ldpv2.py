"""MobileVLM V2's projector in the order of its own code: MLP whole, pooling, convolution."""

from __future__ import annotations

from projector_oracles import BOUND, LLM_DIM, VISION_DIM, by_prefix, compare_modules, made
from torch import nn


class Oracle(nn.Module):
    def __init__(self, side: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(VISION_DIM, LLM_DIM), nn.GELU(), nn.Linear(LLM_DIM, LLM_DIM)
        )
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.peg = nn.Conv2d(LLM_DIM, LLM_DIM, 3, 1, 1, bias=True, groups=LLM_DIM)

    def forward(self, patches):
        grid = self.mlp(patches).transpose(1, 2).reshape(2, LLM_DIM, 6, 6)
        pooled = self.pool(grid)
        return (self.peg(pooled) + pooled).flatten(2).transpose(1, 2)


def test_it_is_mobilevlm_v2s():
    projector = made("ldpv2", num_patches=36, tokens=16)
    names = {"hidden.0": "mlp.0", "output.0": "mlp.2", "output.1.convolution": "peg"}
    compare_modules(projector, Oracle(4), by_prefix(names, projector), BOUND)
