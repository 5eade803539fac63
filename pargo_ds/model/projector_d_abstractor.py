"""Honeybee's D-Abstractor (arXiv 2312.06742; khanrc/honeybee: honeybee/projectors/dabs.py):
Deformable DETR's decoder (arXiv 2010.04159) on one level, with learned queries whose positions are
the pooled patches, and learned reference points that start on a grid.

Deformable DETR's dropout (0.1) is left out: all projectors here are without. In 16 bits the samples
are taken in fp32, as Honeybee takes them.

Axis legend: patches `(images, rows * columns, width)`; queries `(images, tokens, width)`; points
`(x, y)` in 0..1 of the grid.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .head_projections import HeadProjections, check_heads
from .patch_grid import as_grid, as_sequence, side_of
from .projectors import Projector, ProjectorConfig
from .token_output import TokenTable, ZeroLinear, token_output

POSITION_STD = 0.02


class DAbstractorConfig(ProjectorConfig):
    """Options besides those of ProjectorConfig; defaults are those of Honeybee's
    configs/model_config/d-abs.yaml over DeformableDetrConfig.

    Args:
        tokens: visual tokens, a square number.
        layers, width, heads, ffn_width: of the decoder.
        points: where each head of a query looks.
        positions: learned position embeddings on the patches.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    type = "d_abstractor"
    title = "D-Abstractor (Honeybee)"

    def __init__(
        self,
        tokens: int = 144,
        layers: int = 6,
        width: int = 1024,
        heads: int = 8,
        ffn_width: int = 1024,
        points: int = 4,
        positions: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_heads(width, heads)
        self.tokens = tokens
        self.layers = layers
        self.width = width
        self.heads = heads
        self.ffn_width = ffn_width
        self.points = points
        self.positions = positions

    def visual_tokens(self, num_patches: int) -> int:
        side_of(num_patches, "patches of the encoder")
        return side_of(self.tokens, "visual tokens (projector.tokens)") ** 2

    def details(self) -> str:
        return (
            f"{self.layers} layers, width {self.width}, {self.heads} heads of {self.points} points"
        )

    def tiny(self) -> ProjectorConfig:
        return self.changed(width=16, heads=2, layers=min(2, self.layers), ffn_width=32)


class SamplingOffsets(nn.Linear):
    """Where to look, in patches from the reference point: `(..., heads * points * 2)`. It starts
    without the query: each head has its own direction, and its point n is n patches away.
    """

    def __init__(self, width: int, heads: int, points: int) -> None:
        self.heads, self.points = heads, points
        super().__init__(width, heads * points * 2)

    def reset_parameters(self) -> None:
        angles = 2 * math.pi * torch.arange(self.heads) / self.heads
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        start = directions[:, None] * steps[:, None]  # (heads, points, 2)
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            self.bias.copy_(start.flatten())


class ReferencePoints(nn.Module):
    """Learned points `(1, tokens, 2)`, at first a grid from the middle of the first patch to that
    of the last.
    """

    def __init__(self, side: int, patch_side: int) -> None:
        super().__init__()
        self.side, self.patch_side = side, patch_side
        self.weight = nn.Parameter(torch.empty(side * side, 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        along = torch.linspace(0.5, self.patch_side - 0.5, self.side) / self.patch_side
        y, x = torch.meshgrid(along, along, indexing="ij")
        with torch.no_grad():
            self.weight.copy_(torch.stack([x.flatten(), y.flatten()], dim=1))

    def forward(self) -> torch.Tensor:
        return self.weight.unsqueeze(0)


class DeformableAttention(nn.Module):
    """Each head of a query takes a weighted sum of the patches' values at points near the query's
    reference point.
    """

    def __init__(self, width: int, heads: int, points: int, patch_side: int) -> None:
        super().__init__()
        self.heads, self.points, self.patch_side = heads, points, patch_side
        self.offsets = SamplingOffsets(width, heads, points)
        self.weights = ZeroLinear(width, heads * points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(
        self, queries: torch.Tensor, reference: torch.Tensor, patches: torch.Tensor
    ) -> torch.Tensor:
        """Compute `(images, tokens, width)` of queries of this shape, with `reference` points `(1,
        tokens, 2)`.
        """
        shape = (self.heads, self.points)
        offsets = self.offsets(queries).unflatten(-1, (*shape, 2)) / self.patch_side
        weights = self.weights(queries).unflatten(-1, shape).softmax(-1)
        places = reference[:, :, None, None] + offsets  # (images, tokens, heads, points, 2)
        grid = as_grid(self.value(patches), self.patch_side)
        sampled = sample(grid, places)
        mixed = (sampled * weights.movedim(2, 1).unsqueeze(2)).sum(-1)
        return self.output(mixed.permute(0, 3, 1, 2).flatten(2))


def sample(grid: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the bilinear values `(images, heads, head_dim, tokens, points)` of a grid `(images,
    heads * head_dim, rows, columns)` at places `(images, tokens, heads, points, 2)`; they are zero
    outside.
    """
    images, tokens, heads, points, _ = places.shape
    exact = torch.promote_types(grid.dtype, torch.float32)
    by_head = grid.unflatten(1, (heads, -1)).flatten(0, 1).to(exact)
    where = 2 * places.movedim(2, 1).flatten(0, 1).to(exact) - 1
    found = F.grid_sample(by_head, where, padding_mode="zeros", align_corners=False)
    return found.to(grid.dtype).unflatten(0, (images, heads))


class DAbstractorLayer(GradientCheckpointingLayer):
    """Self-attention of the queries, deformable attention to the patches, feed-forward; a LayerNorm
    over each residual sum. Positions are added to what asks and what is looked for, not to values.
    """

    def __init__(self, config: DAbstractorConfig, patch_side: int) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.self_attention = HeadProjections(width, width, config.heads)
        self.self_norm = nn.LayerNorm(width, eps)
        self.patch_attention = DeformableAttention(width, config.heads, config.points, patch_side)
        self.patch_attention_norm = nn.LayerNorm(width, eps)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.ReLU(), nn.Linear(config.ffn_width, width)
        )
        self.ffn_norm = nn.LayerNorm(width, eps)

    def forward(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor,
        reference: torch.Tensor,
        patches: torch.Tensor,
    ) -> torch.Tensor:
        placed = queries + positions
        queries = self.self_norm(queries + self.self_attention.attend(placed, placed, queries))
        seen = self.patch_attention(queries + positions, reference, patches)
        queries = self.patch_attention_norm(queries + seen)
        return self.ffn_norm(queries + self.ffn(queries))


class DAbstractorProjector(Projector):
    """Patches (+ positions); learned queries -> decoder layers -> Linear.

    Raises:
        ValueError: patches or visual tokens that fill no square; the message names the nearest
            number that does.
    """

    config_class = DAbstractorConfig
    layer_classes = ("DAbstractorLayer",)

    def __init__(
        self, config: DAbstractorConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.patch_side = side_of(num_patches, "patches of the encoder")
        self.side = side_of(self.num_tokens, "visual tokens")
        self.input: nn.Module = nn.Identity()
        if vision_dim != config.width:
            self.input = nn.Linear(vision_dim, config.width)
        self.positions = None
        if config.positions:
            self.positions = TokenTable(num_patches, config.width, POSITION_STD)
        self.queries = TokenTable(config.tokens, config.width, std=1.0)
        self.reference = ReferencePoints(self.side, self.patch_side)
        layers = [DAbstractorLayer(config, self.patch_side) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.output = token_output(config, self.num_tokens, config.width, llm_dim)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        patches = self.input(patches)
        if self.positions is not None:
            patches = patches + self.positions(patches.shape[0])
        pooled = F.adaptive_avg_pool2d(as_grid(patches, self.patch_side), self.side)
        positions, reference = as_sequence(pooled), self.reference()
        queries = self.queries(patches.shape[0])
        for layer in self.layers:
            queries = layer(queries, positions, reference, patches)
        return queries
