"""MobileVLM V2's lightweight downsample projector ("MobileVLM V2: Faster and Stronger Baseline for
Vision Language Model", arXiv 2402.03766; Meituan-AutoML/MobileVLM:
mobilevlm/model/vision_projector.py, LDPNetV2): an MLP, average pooling to a square, and a depthwise
3x3 convolution that tells tokens where they are.

Pooling comes before the MLP's last Linear here, which is the same (the mean of a Linear's outputs
is the Linear of the mean), so that this Linear is the projector's output like everywhere.

Axis legend: patches `(images, patches, vision_dim)`; visual tokens `(images, tokens, llm_dim)`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .patch_grid import as_grid, as_sequence, side_of
from .projectors import Projector, ProjectorConfig
from .token_output import token_output


class LDPv2Config(ProjectorConfig):
    """`tokens`: visual tokens, a square number; MobileVLM V2's 144. Other options as in
    ProjectorConfig.
    """

    type = "ldpv2"
    title = "lightweight downsample projector (MobileVLM V2)"

    def __init__(self, tokens: int = 144, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokens = tokens

    def visual_tokens(self, num_patches: int) -> int:
        side_of(num_patches, "patches of the encoder")
        return side_of(self.tokens, "visual tokens (projector.tokens)") ** 2


class DepthwiseConv(nn.Conv2d):
    """One 3x3 filter for each channel. Its bias starts at zero, so that zeros stay zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        assert self.bias is not None  # Conv2d has one unless told otherwise
        nn.init.zeros_(self.bias)


class PositionInjection(nn.Module):
    """Tokens plus a convolution over their neighbours (a position encoding generator, arXiv
    2102.10882).
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.convolution = DepthwiseConv(channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + as_sequence(self.convolution(as_grid(tokens, self.side)))


class LDPv2Projector(Projector):
    """Patches -> Linear -> GELU -> pooled to `tokens` -> Linear -> position injection.

    Raises:
        ValueError: patches or visual tokens that fill no square; the message names the nearest
            number that does.
    """

    config_class = LDPv2Config

    def __init__(
        self, config: LDPv2Config, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.patch_side = side_of(num_patches, "patches of the encoder")
        self.side = side_of(self.num_tokens, "visual tokens")
        self.hidden = nn.Sequential(nn.Linear(vision_dim, llm_dim), nn.GELU())
        mixing = PositionInjection(llm_dim, self.side)
        self.output = token_output(config, self.num_tokens, llm_dim, llm_dim, mixing)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        grid = as_grid(self.hidden(patches), self.patch_side)
        return as_sequence(F.adaptive_avg_pool2d(grid, self.side))
