"""One Linear for each patch: LLaVA's first projector ("Visual Instruction Tuning", arXiv
2304.08485; haotian-liu/LLaVA: llava/model/multimodal_projector/builder.py, `linear`). 576 visual
tokens of 576 patches.
"""

from typing import Any

import torch

from .projectors import Projector, ProjectorConfig
from .token_output import token_output


class LinearConfig(ProjectorConfig):
    """It has no options but those of ProjectorConfig."""

    type = "linear"
    title = "Linear for each patch (LLaVA)"
    follows_patches = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def visual_tokens(self, num_patches: int) -> int:
        return num_patches


class LinearProjector(Projector):
    """Patches -> Linear."""

    config_class = LinearConfig

    def __init__(
        self, config: LinearConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.output = token_output(config, self.num_tokens, vision_dim, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        return patches
