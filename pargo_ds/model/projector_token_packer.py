"""TokenPacker (arXiv 2407.02392; CircleRadon/TokenPacker:
llava/model/multimodal_projector/builder.py): each visual token is a patch of the image seen at half
the resolution, which attends to the 2 x 2 patches that it stands for.

The published keys and values come from four layers of CLIP side by side (4096 numbers a patch);
here, as for all projectors, from the one layer of the run.

Axis legend: patches `(images, patches, vision_dim)`; visual tokens `(images, tokens, llm_dim)`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .head_projections import HeadProjections, check_heads
from .patch_grid import as_grid, as_sequence, merged_side, windows
from .projectors import Projector, ProjectorConfig
from .token_output import token_output

NORM_EPS = 1e-6


class TokenPackerConfig(ProjectorConfig):
    """Options besides those of ProjectorConfig; defaults are TokenPacker's.

    Args:
        scale: a square of scale x scale patches becomes one token; 2, 3 or 4 in the paper (144, 64
            or 36 tokens of 576 patches).
        width, heads: of the attention.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    type = "token_packer"
    title = "TokenPacker"
    follows_patches = True

    def __init__(self, scale: int = 2, width: int = 1024, heads: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_heads(width, heads)
        self.scale = scale
        self.width = width
        self.heads = heads

    def visual_tokens(self, num_patches: int) -> int:
        return merged_side(num_patches, self.scale) ** 2

    def details(self) -> str:
        return f"a token for {self.scale} x {self.scale} patches, width {self.width}"

    def tiny(self) -> ProjectorConfig:
        return self.changed(width=16, heads=2)


def normed_mlp(in_features: int, width: int) -> nn.Sequential:
    """Return what makes keys, or values, of the patches."""
    return nn.Sequential(
        nn.Linear(in_features, width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.LayerNorm(width, NORM_EPS),
    )


class TokenPackerProjector(Projector):
    """Patches at low resolution look at their own region -> Linear -> GELU -> Linear.

    Raises:
        ValueError: a grid that `scale` does not divide; the message names the nearest that works.
    """

    config_class = TokenPackerConfig

    def __init__(
        self, config: TokenPackerConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        width = config.width
        self.scale = config.scale
        self.side = merged_side(num_patches, config.scale)
        self.query = nn.Sequential(
            nn.Linear(vision_dim, width, bias=False), nn.LayerNorm(width, NORM_EPS)
        )
        self.key = normed_mlp(vision_dim, width)
        self.value = normed_mlp(vision_dim, width)
        self.heads = HeadProjections(width, width, config.heads)
        self.hidden = nn.Sequential(nn.Linear(width, llm_dim), nn.GELU())
        self.output = token_output(config, self.num_tokens, llm_dim, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        patch_side = self.side * self.scale
        small = F.interpolate(as_grid(patches, patch_side), (self.side, self.side), mode="bilinear")
        query = self.query(as_sequence(small)).unsqueeze(2)  # (images, tokens, 1, width)
        keys = windows(self.key(patches), patch_side, self.scale)
        values = windows(self.value(patches), patch_side, self.scale)
        # Every token is a little batch of its own: one query, scale x scale patches.
        packed = self.heads.attend(query.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1))
        return self.hidden(packed.unflatten(0, query.shape[:2]).squeeze(2))
