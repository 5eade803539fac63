"""Honeybee's C-Abstractor (arXiv 2312.06742; khanrc/honeybee: honeybee/projectors/projectors.py):
convolutions, average pooling to a square, convolutions, MLP.

A stage is `depth` RegNet bottlenecks as timm's RegStage makes them for Honeybee: 1x1, depthwise
3x3, squeeze and excitation, 1x1, with LayerNorm over the channels and SiLU. Written here, so that
an export needs no timm.

Axis legend: patches `(images, patches, vision_dim)`; grid `(images, width, rows, columns)`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .patch_grid import as_grid, as_sequence, side_of
from .projectors import Projector, ProjectorConfig
from .token_output import TokenTable, token_output

POSITION_STD = 0.02
CHANNEL_EPS = 1e-5  # of the LayerNormAct2d that timm makes of LayerNorm2d
SQUEEZE = 0.25


class CAbstractorConfig(ProjectorConfig):
    """Options besides those of ProjectorConfig; defaults are those of Honeybee's
    configs/model_config/c-abs.yaml.

    Args:
        tokens: visual tokens, a square number.
        depth: bottlenecks before the pooling, and again behind it.
        width: channels of the convolutions.
        mlp_depth: Linears at the end, with a SiLU between them.
        positions: learned position embeddings on the patches.

    Raises:
        ValueError: no bottleneck, or no Linear.
    """

    type = "c_abstractor"
    title = "C-Abstractor (Honeybee)"

    def __init__(
        self,
        tokens: int = 144,
        depth: int = 3,
        width: int = 1024,
        mlp_depth: int = 2,
        positions: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(depth, mlp_depth) < 1:
            raise ValueError(
                f"projector.depth {depth} and projector.mlp_depth {mlp_depth}: both are at least 1"
            )
        self.tokens = tokens
        self.depth = depth
        self.width = width
        self.mlp_depth = mlp_depth
        self.positions = positions

    def visual_tokens(self, num_patches: int) -> int:
        side_of(num_patches, "patches of the encoder")
        return side_of(self.tokens, "visual tokens (projector.tokens)") ** 2

    def details(self) -> str:
        return f"{self.depth} + {self.depth} bottlenecks of width {self.width}"

    def tiny(self) -> ProjectorConfig:
        return self.changed(width=16, depth=1)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a grid."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, CHANNEL_EPS)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        return super().forward(grid.movedim(1, -1)).movedim(-1, 1)


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole grid says."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        mean = grid.mean((2, 3), keepdim=True)
        return grid * torch.sigmoid(self.excite(F.silu(self.squeeze(mean))))


class Bottleneck(nn.Module):
    """RegNet's bottleneck with a residual; a 1x1 convolution where the widths differ."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, width, 1, bias=False)
        self.enter_norm = ChannelNorm(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.depthwise_norm = ChannelNorm(width)
        self.squeeze_excite = SqueezeExcite(width, round(in_channels * SQUEEZE))
        self.leave = nn.Conv2d(width, width, 1, bias=False)
        self.leave_norm = ChannelNorm(width)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, width, 1, bias=False), ChannelNorm(width)
            )

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.enter_norm(self.enter(grid)))
        x = F.silu(self.depthwise_norm(self.depthwise(x)))
        x = self.leave_norm(self.leave(self.squeeze_excite(x)))
        return F.silu(x + self.shortcut(grid))


def stage(in_channels: int, width: int, depth: int) -> nn.Sequential:
    """Make `depth` bottlenecks, the first of which changes the width."""
    first = Bottleneck(in_channels, width)
    return nn.Sequential(first, *(Bottleneck(width, width) for _ in range(depth - 1)))


class CAbstractorProjector(Projector):
    """Patches (+ positions) -> bottlenecks -> pooled to `tokens` -> bottlenecks -> MLP.

    Raises:
        ValueError: patches or visual tokens that fill no square; the message names the nearest
            number that does.
    """

    config_class = CAbstractorConfig
    layer_classes = ("Bottleneck",)

    def __init__(
        self, config: CAbstractorConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.patch_side = side_of(num_patches, "patches of the encoder")
        self.side = side_of(self.num_tokens, "visual tokens")
        self.positions = None
        if config.positions:
            self.positions = TokenTable(num_patches, vision_dim, POSITION_STD)
        self.before = stage(vision_dim, config.width, config.depth)
        self.behind = stage(config.width, config.width, config.depth)
        hidden: list[nn.Module] = []
        in_features = config.width
        for _ in range(config.mlp_depth - 1):
            hidden += [nn.Linear(in_features, llm_dim), nn.SiLU()]
            in_features = llm_dim
        self.hidden = nn.Sequential(*hidden)
        self.output = token_output(config, self.num_tokens, in_features, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        if self.positions is not None:
            patches = patches + self.positions(patches.shape[0])
        grid = self.before(as_grid(patches, self.patch_side))
        grid = self.behind(F.adaptive_avg_pool2d(grid, self.side))
        return self.hidden(as_sequence(grid))
