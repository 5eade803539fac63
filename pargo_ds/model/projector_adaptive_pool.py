"""An MLP over patches pooled to a square grid: the simple rival that ParGo is measured against.

After DeCo ("Decoupling token compression from semantic abstraction", arXiv 2405.20985): average pooling in two
dimensions to the wanted number of tokens, then LLaVA-1.5's two linear layers with a GELU between them. The LayerNorm of
the patches is ours: features of a network without a last norm (EfficientNet) have no scale of their own.

Axis legend: patches `(images, patches, vision_dim)`; visual tokens `(images, tokens, llm_dim)`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .attention import AttentionChoice
from .configuration_pargo import ParGoProjectorConfig
from .projector_pargo import token_output


class AdaptivePoolProjector(nn.Module):
    """Patches -> pooled to `visual_tokens` -> LayerNorm -> Linear -> GELU -> Linear.

    Raises:
        ValueError: patches or visual tokens that fill no square; the message names the nearest number that does.
    """

    def __init__(self, config: ParGoProjectorConfig, vision_dim: int, llm_dim: int, num_patches: int) -> None:
        super().__init__()
        self.patch_side = _side(num_patches, "patches of the encoder")
        self.side = _side(config.visual_tokens, "visual tokens (partial_tokens + global_tokens)")
        self.patch_norm = nn.LayerNorm(vision_dim, config.norm_eps)
        self.hidden = nn.Linear(vision_dim, llm_dim)
        self.output = token_output(config, llm_dim, llm_dim)

    def set_attention(self, choice: AttentionChoice) -> None:
        """Nothing here attends."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        grid = patches.transpose(1, 2).unflatten(2, (self.patch_side, self.patch_side))
        pooled = F.adaptive_avg_pool2d(grid, self.side).flatten(2).transpose(1, 2)
        return self.output(F.gelu(self.hidden(self.patch_norm(pooled))))


def _side(count: int, what: str) -> int:
    side = math.isqrt(count)
    if side * side != count:
        nearest = round(math.sqrt(count)) ** 2
        raise ValueError(f"projector type adaptive_pool needs a square: found {count} {what}; the nearest is {nearest}")
    return side
