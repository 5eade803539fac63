"""Qwen2.5-VL's patch merger (arXiv 2502.13923; transformers: Qwen2_5_VLPatchMerger): RMSNorm of
each patch, 2 x 2 neighbours side by side, MLP as wide as they are. 144 visual tokens of 576
patches.

Axis legend: patches `(images, patches, vision_dim)`; visual tokens `(images, tokens, llm_dim)`.
"""

from typing import Any

import torch
from torch import nn

from .patch_grid import merged_side, windows
from .projectors import Projector, ProjectorConfig
from .token_output import token_output

RMS_EPS = 1e-6


class PatchMergerConfig(ProjectorConfig):
    """`scale`: a square of scale x scale patches becomes one token; Qwen2.5-VL has 2 (its
    `spatial_merge_size`). Other options as in ProjectorConfig.
    """

    type = "patch_merger"
    title = "patch merger (Qwen2.5-VL)"
    follows_patches = True

    def __init__(self, scale: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale

    def visual_tokens(self, num_patches: int) -> int:
        return merged_side(num_patches, self.scale) ** 2

    def details(self) -> str:
        return f"{self.scale} x {self.scale} patches joined"


class PatchMergerProjector(Projector):
    """Patches -> RMSNorm -> windows side by side -> Linear -> GELU -> Linear.

    Raises:
        ValueError: a grid that `scale` does not divide; the message names the nearest that works.
    """

    config_class = PatchMergerConfig

    def __init__(
        self, config: PatchMergerConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.scale = config.scale
        self.patch_side = merged_side(num_patches, config.scale) * config.scale
        width = vision_dim * config.scale**2
        self.norm = nn.RMSNorm(vision_dim, RMS_EPS)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.output = token_output(config, self.num_tokens, width, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        joined = windows(self.norm(patches), self.patch_side, self.scale).flatten(2)
        return self.hidden(joined)
