"""InternVL's projector ("How Far Are We to GPT-4V?", arXiv 2404.16821; OpenGVLab/InternVL:
modeling_internvl_chat.py, `mlp1` over `pixel_shuffle`): 2 x 2 neighbours side by side, LayerNorm,
MLP. 144 visual tokens of 576 patches.

Axis legend: patches `(images, patches, vision_dim)`; visual tokens `(images, tokens, llm_dim)`.
"""

from typing import Any

import torch
from torch import nn

from .patch_grid import merged_side, windows
from .projectors import Projector, ProjectorConfig
from .token_output import token_output


class PixelShuffleConfig(ProjectorConfig):
    """`scale`: a square of scale x scale patches becomes one token; InternVL has 2 (its
    `downsample_ratio` 0.5). Other options as in ProjectorConfig.
    """

    type = "pixel_shuffle"
    title = "pixel shuffle and MLP (InternVL)"
    follows_patches = True

    def __init__(self, scale: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale

    def visual_tokens(self, num_patches: int) -> int:
        return merged_side(num_patches, self.scale) ** 2

    def details(self) -> str:
        return f"{self.scale} x {self.scale} patches joined"


class PixelShuffleProjector(Projector):
    """Patches -> windows side by side -> LayerNorm -> Linear -> GELU -> Linear.

    Raises:
        ValueError: a grid that `scale` does not divide; the message names the nearest that works.
    """

    config_class = PixelShuffleConfig

    def __init__(
        self, config: PixelShuffleConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.scale = config.scale
        self.patch_side = merged_side(num_patches, config.scale) * config.scale
        self.norm = nn.LayerNorm(vision_dim * config.scale**2, config.norm_eps)
        self.hidden = nn.Sequential(nn.Linear(vision_dim * config.scale**2, llm_dim), nn.GELU())
        self.output = token_output(config, self.num_tokens, llm_dim, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        joined = windows(patches, self.patch_side, self.scale).flatten(2)
        return self.hidden(self.norm(joined))
