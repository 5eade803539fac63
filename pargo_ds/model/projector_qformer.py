"""BLIP-2's Q-Former ("BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders
and Large Language Models", arXiv 2301.12597; salesforce/LAVIS:
lavis/models/blip2_models/Qformer.py): learned queries in a BERT whose every second layer also looks
at the patches.

The text half of BLIP-2's Q-Former, which only its first stage uses, is left out, as are BERT's
pretrained weights and its dropout (0.1): all projectors here start new, without dropout.

Axis legend: patches `(images, patches, vision_dim)`; queries `(images, tokens, width)`.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .head_projections import HeadProjections, check_heads
from .projectors import Projector, ProjectorConfig
from .token_output import TokenTable, token_output

QUERY_STD = 0.02  # BERT's initializer_range


class QFormerConfig(ProjectorConfig):
    """Options besides those of ProjectorConfig; defaults are BLIP-2's.

    Args:
        tokens: learned queries, each of which becomes a visual token.
        layers, width, heads, ffn_width: of the BERT.
        cross_every: layers 0, cross_every, 2 * cross_every, ... look at the patches.
        norm_eps: of all LayerNorms.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    type = "qformer"
    title = "Q-Former (BLIP-2)"

    def __init__(
        self,
        tokens: int = 32,
        layers: int = 12,
        width: int = 768,
        heads: int = 12,
        ffn_width: int = 3072,
        cross_every: int = 2,
        norm_eps: float = 1e-12,
        **kwargs: Any,
    ) -> None:
        super().__init__(norm_eps=norm_eps, **kwargs)
        check_heads(width, heads)
        self.tokens = tokens
        self.layers = layers
        self.width = width
        self.heads = heads
        self.ffn_width = ffn_width
        self.cross_every = cross_every

    def details(self) -> str:
        seen = f"patches seen every {self.cross_every} layers"
        return f"{self.layers} layers, width {self.width}, {seen}"

    def tiny(self) -> ProjectorConfig:
        return self.changed(width=16, heads=2, layers=min(2, self.layers), ffn_width=32)


class QFormerLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention to the patches in some layers, feed-forward; a LayerNorm over
    each residual sum.
    """

    def __init__(self, config: QFormerConfig, vision_dim: int, layer: int) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.self_attention = HeadProjections(width, width, config.heads)
        self.self_norm = nn.LayerNorm(width, eps)
        self.crosses = layer % config.cross_every == 0
        if self.crosses:
            self.cross_attention = HeadProjections(width, vision_dim, config.heads)
            self.cross_norm = nn.LayerNorm(width, eps)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.GELU(), nn.Linear(config.ffn_width, width)
        )
        self.ffn_norm = nn.LayerNorm(width, eps)

    def forward(self, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        queries = self.self_norm(queries + self.self_attention.attend(queries, queries))
        if self.crosses:
            queries = self.cross_norm(queries + self.cross_attention.attend(queries, patches))
        return self.ffn_norm(queries + self.ffn(queries))


class QFormerProjector(Projector):
    """Learned queries -> LayerNorm -> BERT layers that see the patches -> Linear."""

    config_class = QFormerConfig
    layer_classes = ("QFormerLayer",)

    def __init__(
        self, config: QFormerConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.queries = TokenTable(config.tokens, config.width, QUERY_STD)
        self.query_norm = nn.LayerNorm(config.width, config.norm_eps)
        layers = [QFormerLayer(config, vision_dim, layer) for layer in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.output = token_output(config, config.tokens, config.width, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        queries = self.query_norm(self.queries(patches.shape[0]))
        for layer in self.layers:
            queries = layer(queries, patches)
        return queries
