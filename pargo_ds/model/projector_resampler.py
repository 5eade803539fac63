"""The Perceiver resampler of Flamingo (arXiv 2204.14198; mlfoundations/open_flamingo:
open_flamingo/src/helpers.py): learned latents that look at the patches and at each other.

Time embeddings are left out (one frame an image). Flamingo reads the latents by cross-attention in
the LLM; here a Linear makes visual tokens of them, as in Idefics.

Axis legend: patches `(images, patches, vision_dim)`; latents `(images, tokens, vision_dim)`.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .head_projections import HeadProjections
from .projectors import Projector, ProjectorConfig
from .token_output import TokenTable, token_output


class ResamplerConfig(ProjectorConfig):
    """Options besides those of ProjectorConfig; defaults are Flamingo's.

    Args:
        tokens: learned latents, as wide as the patches; each becomes a visual token.
        layers, heads, head_dim: depth and attention; heads x head_dim need not be the width.
        ffn_multiple: inner width of the feed-forward network over the width.
    """

    type = "resampler"
    title = "Perceiver resampler (Flamingo)"

    def __init__(
        self,
        tokens: int = 64,
        layers: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        ffn_multiple: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tokens = tokens
        self.layers = layers
        self.heads = heads
        self.head_dim = head_dim
        self.ffn_multiple = ffn_multiple

    def details(self) -> str:
        return f"{self.layers} layers, {self.heads} heads of {self.head_dim}"

    def tiny(self) -> ProjectorConfig:
        return self.changed(layers=min(2, self.layers), heads=2, head_dim=8)


class ResamplerLayer(GradientCheckpointingLayer):
    """Latents attend to patches and latents together, then a feed-forward network; LayerNorm before
    each, no biases.
    """

    def __init__(self, config: ResamplerConfig, width: int) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(width, config.norm_eps)
        self.latent_norm = nn.LayerNorm(width, config.norm_eps)
        self.heads = HeadProjections(width, width, config.heads, config.head_dim, bias=False)
        inner = config.ffn_multiple * width
        self.ffn = nn.Sequential(
            nn.LayerNorm(width, config.norm_eps),
            nn.Linear(width, inner, bias=False),
            nn.GELU(),
            nn.Linear(inner, width, bias=False),
        )

    def forward(self, latents: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        normed = self.latent_norm(latents)
        source = torch.cat([self.patch_norm(patches), normed], dim=1)
        latents = latents + self.heads.attend(normed, source)
        return latents + self.ffn(latents)


class ResamplerProjector(Projector):
    """Learned latents -> layers that see the patches -> LayerNorm -> Linear."""

    config_class = ResamplerConfig
    layer_classes = ("ResamplerLayer",)

    def __init__(
        self, config: ResamplerConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.latents = TokenTable(config.tokens, vision_dim, std=1.0)
        layers = [ResamplerLayer(config, vision_dim) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.final_norm = nn.LayerNorm(vision_dim, config.norm_eps)
        self.output = token_output(config, config.tokens, vision_dim, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        latents = self.latents(patches.shape[0])
        for layer in self.layers:
            latents = layer(latents, patches)
        return self.final_norm(latents)
