"""An MLP for each patch: LLaVA-1.5's projector ("Improved Baselines with Visual Instruction
Tuning", arXiv 2310.03744; haotian-liu/LLaVA: llava/model/multimodal_projector/builder.py,
`mlp2x_gelu`). 576 visual tokens of 576 patches.

Axis legend: patches `(images, patches, vision_dim)`; visual tokens `(images, tokens, llm_dim)`.
"""

from typing import Any

import torch
from torch import nn

from .projectors import Projector, ProjectorConfig
from .token_output import token_output


def hidden_layers(in_features: int, llm_dim: int, depth: int) -> nn.Sequential:
    """Make all of an MLP of `depth` Linears but the last one, as wide as the LLM, with a GELU
    behind each.
    """
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(in_features, llm_dim), nn.GELU()]
        in_features = llm_dim
    return nn.Sequential(*layers)


class MLPConfig(ProjectorConfig):
    """`depth`: Linears, with a GELU between them; 2 in LLaVA-1.5. Other options as in
    ProjectorConfig.

    Raises:
        ValueError: no layer.
    """

    type = "mlp"
    title = "MLP for each patch (LLaVA-1.5)"
    follows_patches = True

    def __init__(self, depth: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if depth < 1:
            raise ValueError(f"projector.depth is {depth}: an MLP has at least one layer")
        self.depth = depth

    def visual_tokens(self, num_patches: int) -> int:
        return num_patches

    def details(self) -> str:
        return f"{self.depth} layers"


class MLPProjector(Projector):
    """Patches -> Linear -> GELU -> ... -> Linear."""

    config_class = MLPConfig

    def __init__(self, config: MLPConfig, vision_dim: int, llm_dim: int, num_patches: int) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.hidden = hidden_layers(vision_dim, llm_dim, config.depth)
        last = vision_dim if config.depth == 1 else llm_dim
        self.output = token_output(config, self.num_tokens, last, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        return self.hidden(patches)
