"""An MLP over patches pooled to a square grid: the simple rival that ParGo is measured against.

After DeCo ("Decoupling token compression from semantic abstraction", arXiv 2405.20985;
yaolinli/DeCo): average pooling in two dimensions to the wanted number of tokens, then LLaVA-1.5's
two linear layers with a GELU between them. DeCo's number is 144 tokens of 576 patches.
`patch_norm` lies behind the pooling, where docs/learning.md measured it.

Axis legend: patches `(images, patches, vision_dim)`; visual tokens `(images, tokens, llm_dim)`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .patch_grid import as_grid, as_sequence, side_of
from .projectors import Projector, ProjectorConfig
from .token_output import token_output


class AdaptivePoolConfig(ProjectorConfig):
    """`tokens`: visual tokens, a square number. Other options as in ProjectorConfig."""

    type = "adaptive_pool"
    title = "MLP over adaptively pooled patches (DeCo)"

    def __init__(self, tokens: int = 144, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokens = tokens

    def visual_tokens(self, num_patches: int) -> int:
        side_of(num_patches, "patches of the encoder")
        return side_of(self.tokens, "visual tokens (projector.tokens)") ** 2


class AdaptivePoolProjector(Projector):
    """Patches -> pooled to `tokens` -> LayerNorm -> Linear -> GELU -> Linear.

    Raises:
        ValueError: patches or visual tokens that fill no square; the message names the nearest
            number that does.
    """

    config_class = AdaptivePoolConfig

    def __init__(
        self, config: AdaptivePoolConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.patch_side = side_of(num_patches, "patches of the encoder")
        self.side = side_of(self.num_tokens, "visual tokens")
        self.hidden = nn.Linear(vision_dim, llm_dim)
        self.output = token_output(config, self.num_tokens, llm_dim, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.hidden(patches))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        self.check_patches(patches)
        pooled = as_sequence(F.adaptive_avg_pool2d(as_grid(patches, self.patch_side), self.side))
        return self.output(self.features(self.patch_norm(pooled)))
