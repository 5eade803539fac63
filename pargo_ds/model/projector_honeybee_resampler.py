"""Honeybee's resampler (arXiv 2312.06742; khanrc/honeybee: honeybee/projectors/resamplers.py),
which its authors compare their abstractors with: mPLUG-Owl's visual abstractor.

As in their code the residual of the attention is the *normed* query, and there is no last norm. Its
dropout (0.1) is left out: all projectors here are without. Position embeddings are off in their
configuration of it, and are not offered.

Axis legend: patches `(images, patches, vision_dim)`; queries `(images, tokens, width)`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .head_projections import HeadProjections, check_heads
from .projectors import Projector, ProjectorConfig
from .token_output import TokenTable, token_output

QUERY_STD = 0.02
INNER_EPS = 1e-6  # of the LayerNorm inside the feed-forward network; all others have norm_eps


class HoneybeeResamplerConfig(ProjectorConfig):
    """Options besides those of ProjectorConfig; defaults are those of Honeybee's
    configs/model_config/resampler.yaml.

    Args:
        tokens: learned queries, each of which becomes a visual token.
        layers, width, heads, ffn_width: depth, width, attention heads, inner width of the SwiGLU.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    type = "honeybee_resampler"
    title = "resampler (Honeybee)"

    def __init__(
        self,
        tokens: int = 64,
        layers: int = 6,
        width: int = 1024,
        heads: int = 16,
        ffn_width: int = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_heads(width, heads)
        self.tokens = tokens
        self.layers = layers
        self.width = width
        self.heads = heads
        self.ffn_width = ffn_width

    def details(self) -> str:
        return f"{self.layers} layers, width {self.width}"

    def tiny(self) -> ProjectorConfig:
        return self.changed(width=16, heads=2, layers=min(2, self.layers), ffn_width=32)


class NormedSwiGLU(nn.Module):
    """SwiGLU with a LayerNorm before its last Linear."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner)
        self.up = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner, INNER_EPS)
        self.down = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(F.silu(self.gate(x)) * self.up(x)))


class HoneybeeResamplerLayer(GradientCheckpointingLayer):
    """Normed queries attend to themselves and the normed patches, then the feed-forward network."""

    def __init__(self, config: HoneybeeResamplerConfig) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.query_norm = nn.LayerNorm(width, eps)
        self.patch_norm = nn.LayerNorm(width, eps)
        self.heads = HeadProjections(width, width, config.heads)
        self.ffn_norm = nn.LayerNorm(width, eps)
        self.ffn = NormedSwiGLU(width, config.ffn_width)

    def forward(self, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        queries = self.query_norm(queries)
        source = torch.cat([queries, self.patch_norm(patches)], dim=1)
        queries = queries + self.heads.attend(queries, source)
        return queries + self.ffn(self.ffn_norm(queries))


class HoneybeeResamplerProjector(Projector):
    """Patches -> Linear; learned queries -> layers that see them -> Linear."""

    config_class = HoneybeeResamplerConfig
    layer_classes = ("HoneybeeResamplerLayer",)

    def __init__(
        self, config: HoneybeeResamplerConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.input = nn.Linear(vision_dim, config.width)
        self.queries = TokenTable(config.tokens, config.width, QUERY_STD)
        self.layers = nn.ModuleList(HoneybeeResamplerLayer(config) for _ in range(config.layers))
        self.output = token_output(config, config.tokens, config.width, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        patches, queries = self.input(patches), self.queries(patches.shape[0])
        for layer in self.layers:
            queries = layer(queries, patches)
        return queries
