"""An MLP over neighbours that are joined: the linear and MLP baselines of ParGo's own release
(bytedance/ParGo: eval/init_models.py, `fusion_method` linear and mlp, `visual_tokens_adjacent` 4),
after MiniGPT-v2 (arXiv 2310.09478). Runs of 4 patches in raster order become one: 144 visual tokens
of 576 patches.

Axis legend: patches `(images, patches, vision_dim)`; visual tokens `(images, tokens, llm_dim)`.
"""

from typing import Any

import torch

from .projector_mlp import hidden_layers
from .projectors import Projector, ProjectorConfig
from .token_output import token_output


class MLPConcatConfig(ProjectorConfig):
    """Options besides those of ProjectorConfig.

    Args:
        joined: neighbours in raster order that become one visual token.
        depth: Linears, with a GELU between them; 2 is the release's mlp, 1 its linear.

    Raises:
        ValueError: no layer, or nothing joined.
    """

    type = "mlp_concat"
    title = "MLP over joined neighbours (ParGo's baseline)"
    follows_patches = True

    def __init__(self, joined: int = 4, depth: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if min(joined, depth) < 1:
            raise ValueError(
                f"projector.joined is {joined} and projector.depth {depth}: both are at least 1"
            )
        self.joined = joined
        self.depth = depth

    def visual_tokens(self, num_patches: int) -> int:
        if num_patches % self.joined:
            fitting = [n for n in range(1, num_patches + 1) if num_patches % n == 0]
            nearest = min(fitting, key=lambda n: abs(n - self.joined))
            raise ValueError(
                f"projector.joined {self.joined} does not divide {num_patches} patches; the "
                f"nearest number that does is {nearest}"
            )
        return num_patches // self.joined

    def details(self) -> str:
        return f"{self.joined} patches joined, {self.depth} layers"


class MLPConcatProjector(Projector):
    """Patches -> `joined` of them side by side -> Linear -> GELU -> Linear."""

    config_class = MLPConcatConfig

    def __init__(
        self, config: MLPConcatConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.joined = config.joined
        width = vision_dim * config.joined
        self.hidden = hidden_layers(width, llm_dim, config.depth)
        last = width if config.depth == 1 else llm_dim
        self.output = token_output(config, self.num_tokens, last, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        return self.hidden(patches.unflatten(1, (-1, self.joined)).flatten(2))
