"""The partial-global projector: learned tokens -> d x (CPP -> PGP -> FFN) -> Linear to the LLM's
width.

With `soft_prompt` (ours, docs/learning.md) that Linear starts at zero and is added to a learned
vector for each token.

Paper section 3 and figure 2. Axis legend: patches `(images, patches, vision_dim)`; tokens `(images,
partial + global, width)`, partial first; visual tokens `(images, partial + global, llm_dim)`. Every
size comes from the configuration: under ZeRO-3 a partitioned weight has shape (0,).

`norm: post` with `patch_norm: false`, `query_positions`, `norm_eps: 1e-12` and `cascade: release`
is the projector of the authors' release (bytedance/ParGo:
pargo/backbone/language/qformer_bert.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import AttentionChoice, cascade_attention, partial_attention
from .groups import PatchGroups
from .head_projections import HeadProjections, check_heads
from .masks import (
    CASCADES,
    GROUPINGS,
    cascade_mask,
    partial_global_mask,
    patches_of_partial,
    window_width,
)
from .projectors import Projector, ProjectorConfig
from .token_output import ScaledLinear, TokenTable, ZeroLinear, token_output

POSITION_STD = 0.02  # BERT's initializer_range
QUERY_STD = 0.5
"""Standard deviation of the learned tokens at the start."""
NORMS = ("pre", "post")


class ParGoProjectorConfig(ProjectorConfig):
    """Shape of the partial-global projector. Defaults are this project's: the paper does not
    publish depth, width or heads.

    Args:
        partial_tokens, global_tokens: learned tokens; the paper uses 288 + 16 for 576 patches.
        layers, width, heads: depth d, hidden size and attention heads.
        ffn_width: inner width of the feed-forward network; None means 4 * width.
        cascade: shifted | centered | each_side | none | release (masks.cascade_window).
        grouping: raster (the paper) | block (2-D, ours): which patches a partial token sees
            (masks.patches_of_partial).
        norm: pre (LayerNorm before each branch and at the end) | post (BERT's order, as the
            authors' release has it: over the tokens and after each residual sum; with `patch_norm:
            false` the patches come as `feature_norm` left them).
        query_positions: add learned position embeddings to the learned tokens, as the authors'
            release does.
        kwargs: those of ProjectorConfig; BERT's `norm_eps` is 1e-12.

    Raises:
        ValueError: unknown cascade, grouping or norm, a width that the heads do not divide, or no
            tokens.
    """

    type = "pargo"
    title = "partial-global projector"

    def __init__(
        self,
        partial_tokens: int = 288,
        global_tokens: int = 16,
        layers: int = 6,
        width: int = 1024,
        heads: int = 16,
        ffn_width: int | None = None,
        cascade: str = "shifted",
        grouping: str = "raster",
        norm: str = "pre",
        query_positions: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for option, value, known in (
            ("cascade", cascade, CASCADES),
            ("grouping", grouping, GROUPINGS),
            ("norm", norm, NORMS),
        ):
            if value not in known:
                raise ValueError(
                    f"unknown projector.{option} '{value}': choose one of {', '.join(known)}"
                )
        check_heads(width, heads)
        if (
            min(partial_tokens, global_tokens) < 0
            or partial_tokens + global_tokens < 1
            or layers < 1
        ):
            raise ValueError(
                f"projector: {partial_tokens} partial tokens, {global_tokens} global tokens, "
                f"{layers} layers; need at least one token and one layer"
            )
        self.partial_tokens = partial_tokens
        self.global_tokens = global_tokens
        self.layers = layers
        self.width = width
        self.heads = heads
        if ffn_width is None:
            ffn_width = 4 * width
        self.ffn_width = ffn_width
        self.cascade = cascade
        self.grouping = grouping
        self.norm = norm
        self.query_positions = query_positions

    @property
    def tokens(self) -> int:
        """Learned tokens, partial and global, each of which becomes a visual token."""
        return self.partial_tokens + self.global_tokens

    def details(self) -> str:
        return (
            f"{self.partial_tokens} partial + {self.global_tokens} global, {self.layers} layers, "
            f"width {self.width}, cascade {self.cascade}, grouping {self.grouping}"
        )

    def masks(self, num_patches: int) -> list[tuple[str, torch.Tensor, str]]:
        """Return the cascade in each layer, then the partial and global tokens over the patches.

        Raises:
            ValueError: as masks.py: more partial tokens than patches, patches that fill no square.
        """
        n = self.partial_tokens
        shown = []
        for layer in range(1, self.layers + 1):
            mask = cascade_mask(n, layer, self.layers, self.cascade)
            shown.append((f"layer {layer}: {self.cascade_title(layer)}", mask, "partial tokens"))
        mask = partial_global_mask(n, self.global_tokens, num_patches, self.grouping)
        title = f"{n} partial + {self.global_tokens} global, {self.grouping}"
        return [*shown, (title, mask, "patches (raster order)")]

    def cascade_title(self, layer: int) -> str:
        """Return what one layer's cascade does, in a few words."""
        if self.cascade == "none":
            return "no cascade"
        if self.cascade == "release":
            return f"all {self.partial_tokens} (release)"
        width = window_width(self.partial_tokens, layer, self.layers)
        return {
            "shifted": f"one to {width}",
            "centered": f"up to {width}",
            "each_side": f"{width} each side",
        }[self.cascade]

    def regions(self, num_patches: int) -> dict[str, Sequence[Sequence[int]]]:
        """Return the patches of each partial token in both groupings; the own one is named."""
        regions: dict[str, Sequence[Sequence[int]]] = {}
        for grouping in GROUPINGS:
            title = grouping
            if grouping == self.grouping:
                title += " (this run)"
            regions[title] = patches_of_partial(self.partial_tokens, num_patches, grouping)
        return regions

    def tiny(self) -> ProjectorConfig:
        return self.changed(width=16, heads=2, layers=min(2, self.layers), ffn_width=32)


class CascadedPartialPerception(HeadProjections):
    """CPP: each partial token looks at a window of partial tokens that grows with the layer; global
    tokens bypass it.

    Only the `release` cascade also attends among the global tokens, as the authors' released mask
    does.
    """

    def __init__(self, config: ParGoProjectorConfig, layer: int) -> None:
        super().__init__(config.width, config.width, config.heads)
        self.layer, self.depth, self.cascade = layer, config.layers, config.cascade
        self.num_partial = config.partial_tokens
        self.num_seen = config.partial_tokens
        if config.cascade == "release":
            self.num_seen = config.tokens
        self.attention = AttentionChoice()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the change of tokens `(images, partial + global, width)`, in their shape; it is
        zero for tokens that bypass.
        """
        n, seen = self.num_partial, tokens[:, : self.num_seen]
        q, k, v = (
            self.split(self.query(seen)),
            self.split(self.key(seen)),
            self.split(self.value(seen)),
        )
        partial = cascade_attention(
            q[:, :, :n], k[:, :, :n], v[:, :, :n], self.layer, self.depth, self.cascade,
            backend=self.attention.cascade, provider=self.attention.provider,
        )  # fmt: skip
        if self.cascade == "release":
            among_global = F.scaled_dot_product_attention(q[:, :, n:], k[:, :, n:], v[:, :, n:])
            return self.merge(torch.cat([partial, among_global], dim=2))
        bypass = tokens.new_zeros(tokens.shape[0], tokens.shape[1] - n, tokens.shape[2])
        return torch.cat([self.merge(partial), bypass], dim=1)


class PartialGlobalPerception(HeadProjections):
    """PGP: cross-attention to the patches, partial tokens to their group and global tokens to all;
    two calls, so that the partial-global mask of the two together is never built.
    """

    def __init__(self, config: ParGoProjectorConfig, vision_dim: int, num_patches: int) -> None:
        super().__init__(config.width, vision_dim, config.heads)
        if config.soft_prompt:
            self.output = ScaledLinear(config.width, config.width, output_std=1.0)
        else:
            self.output = ZeroLinear(config.width, config.width)
        self.groups = PatchGroups(config.partial_tokens, num_patches, config.grouping)
        self.attention = AttentionChoice()

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        q = self.split(self.query(tokens))
        k, v = self.split(self.key(patches)), self.split(self.value(patches))
        n, choice = self.groups.num_partial, self.attention
        parts = []
        if n > 0:
            parts.append(
                partial_attention(q[:, :, :n], k, v, self.groups, choice.partial, choice.provider)
            )
        if n < q.shape[2]:
            parts.append(F.scaled_dot_product_attention(q[:, :, n:], k, v))
        return self.merge(torch.cat(parts, dim=2))


class PargoLayer(GradientCheckpointingLayer):
    """One layer, pre-norm with residuals: CPP -> PGP -> FFN. `cascade: none` leaves CPP out."""

    def __init__(
        self, config: ParGoProjectorConfig, vision_dim: int, num_patches: int, layer: int
    ) -> None:
        super().__init__()
        # Without partial tokens only the release mask leaves someone to attend to: the global ones
        # (a Q-Former).
        self.has_cascade = config.cascade == "release" or (
            config.cascade != "none" and config.partial_tokens > 0
        )
        if self.has_cascade:
            self.cascade_norm = nn.LayerNorm(config.width, config.norm_eps)
            self.cascade = CascadedPartialPerception(config, layer)
        self.perception_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.perception = PartialGlobalPerception(config, vision_dim, num_patches)
        self.ffn_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.width, config.ffn_width),
            nn.GELU(),
            nn.Linear(config.ffn_width, config.width),
        )

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        if self.has_cascade:
            tokens = tokens + self.cascade(self.cascade_norm(tokens))
        tokens = tokens + self.perception(self.perception_norm(tokens), patches)
        return tokens + self.ffn(self.ffn_norm(tokens))


class PostNormLayer(PargoLayer):
    """The same modules in BERT's order, LayerNorm over each residual sum.

    What bypasses CPP bypasses its norm, too.
    """

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        if self.has_cascade:
            seen = self.cascade.num_seen
            normed = self.cascade_norm(tokens + self.cascade(tokens))
            tokens = torch.cat([normed[:, :seen], tokens[:, seen:]], dim=1)
        tokens = self.perception_norm(tokens + self.perception(tokens, patches))
        return self.ffn_norm(tokens + self.ffn(tokens))


class PargoProjector(Projector):
    """Patches `(images, patches, vision_dim)` -> visual tokens `(images, partial + global,
    llm_dim)`, partial first.

    Raises:
        ValueError: more partial tokens than patches, or block grouping of patches that fill no
            square.
    """

    config_class = ParGoProjectorConfig
    layer_classes = ("PargoLayer", "PostNormLayer")

    def __init__(
        self, config: ParGoProjectorConfig, vision_dim: int, llm_dim: int, num_patches: int
    ) -> None:
        super().__init__(config, vision_dim, llm_dim, num_patches)
        self.post = config.norm == "post"
        self.tokens = TokenTable(config.tokens, config.width, QUERY_STD)
        self.positions = None
        if config.query_positions:
            self.positions = TokenTable(config.tokens, config.width, POSITION_STD)
        if self.post:
            self.token_norm = nn.LayerNorm(config.width, config.norm_eps)
        layer = PostNormLayer if self.post else PargoLayer
        layers = [layer(config, vision_dim, num_patches, n + 1) for n in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.final_norm: nn.Module = nn.Identity()
        if not self.post:
            self.final_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.output = token_output(config, config.tokens, config.width, llm_dim)

    def first_tokens(self, num_images: int) -> torch.Tensor:
        """Return what the first layer starts from, `(images, partial + global, width)`."""
        tokens = self.tokens(num_images)
        if self.positions is not None:
            tokens = tokens + self.positions(num_images)
        if self.post:
            return self.token_norm(tokens)
        return tokens

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        tokens = self.first_tokens(patches.shape[0])
        for layer in self.layers:
            tokens = layer(tokens, patches)
        return self.final_norm(tokens)
