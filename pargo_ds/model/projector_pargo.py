"""The partial-global projector: learned tokens -> d x (CPP -> PGP -> FFN) -> Linear to the LLM's width.

With `soft_prompt` (ours, docs/learning.md) that Linear starts at zero and is added to a learned vector for each token.

Paper section 3 and figure 2. Axis legend: patches `(images, patches, vision_dim)`; tokens
`(images, partial + global, width)`, partial first; visual tokens `(images, partial + global, llm_dim)`.
Every size comes from the configuration: under ZeRO-3 a partitioned weight has shape (0,).

`norm: post` with `query_positions`, `norm_eps: 1e-12` and `cascade: release` is the projector of the authors' release
(bytedance/ParGo: pargo/backbone/language/qformer_bert.py).
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import AttentionChoice, cascade_attention, global_attention, partial_attention
from .configuration_pargo import ParGoProjectorConfig
from .groups import PatchGroups

POSITION_STD = 0.02  # BERT's initializer_range


class TokenTable(nn.Module):
    """Learned partial and global tokens, `(partial + global, width)`, drawn from a normal of `std`.

    An own module, so that ZeRO-3 gathers it when it is called and `_init_weights` can find it.
    """

    def __init__(self, num_tokens: int, width: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(num_tokens, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, num_images: int) -> torch.Tensor:
        return self.weight.unsqueeze(0).expand(num_images, -1, -1)  # (images, partial + global, width)


class ScaledLinear(nn.Linear):
    """Linear whose output has a standard deviation of about `output_std` for inputs of unit variance.

    Visual tokens then enter the LLM at the scale of its word embeddings: without this the loss first rose (6.8 to 8.1)
    in trials with a small frozen LLM.
    """

    def __init__(self, in_features: int, out_features: int, output_std: float) -> None:
        self.output_std = output_std
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.output_std * self.in_features**-0.5)
        nn.init.zeros_(self.bias)


class ZeroLinear(nn.Linear):
    """Linear that gives zeros at the start.

    One of them lies on each way from the image to the visual tokens, because a frozen LLM reads whatever the projector
    says from the first step on: tokens that begin with random image-dependent parts are noise to it (docs/learning.md;
    Flamingo's zero gates do the same). Two on one way would hold each other at zero.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class VisualTokenOutput(nn.Module):
    """The end of a projector with a soft prompt (ours): scale x (W features + learned vectors), W zero at the start.

    The learned vectors `(tokens, llm_dim)` are what no image changes, the soft prompt of Lester et al. (arXiv
    2104.08691); they begin as Gaussian vectors of the deviation of the LLM's word embeddings, which is `scale`. The
    fixed factor makes weights and learning rates independent of the LLM's embeddings, and keeps this layer's gradient
    in proportion to the others' when gradients are clipped.
    """

    def __init__(self, config: ParGoProjectorConfig, in_features: int, llm_dim: int) -> None:
        super().__init__()
        self.scale = config.output_std
        self.linear = ZeroLinear(in_features, llm_dim, bias=False)
        self.soft_prompt = TokenTable(config.visual_tokens, llm_dim, std=1.0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * (self.linear(features) + self.soft_prompt(features.shape[0]))


def token_output(config: ParGoProjectorConfig, in_features: int, llm_dim: int) -> nn.Module:
    """What writes the visual tokens of a projector: features `(images, tokens, in_features)` -> `(..., llm_dim)`."""
    if config.soft_prompt:
        return VisualTokenOutput(config, in_features, llm_dim)
    return ScaledLinear(in_features, llm_dim, config.output_std)


class HeadProjections(nn.Module):
    """Query, key, value and output projections shared by CPP and PGP.

    The key has no bias: it would add the same number to a row's scores and cancel in the softmax.
    """

    def __init__(self, width: int, source_dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_dim, width, bias=False)
        self.value = nn.Linear(source_dim, width)
        self.output = nn.Linear(width, width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)  # (images, heads, tokens, head_dim)

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(x.transpose(1, 2).flatten(2))  # (images, tokens, width)


class CascadedPartialPerception(HeadProjections):
    """CPP: each partial token looks at a window of partial tokens that grows with the layer; global tokens bypass it.

    Only the `release` cascade also attends among the global tokens, as the authors' released mask does.
    """

    def __init__(self, config: ParGoProjectorConfig, layer: int) -> None:
        super().__init__(config.width, config.width, config.heads)
        self.layer, self.depth, self.cascade = layer, config.layers, config.cascade
        self.num_partial = config.partial_tokens
        self.num_seen = config.visual_tokens if config.cascade == "release" else config.partial_tokens
        self.attention = AttentionChoice()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(images, partial + global, width)` -> the same shape, zero for tokens that bypass."""
        n, seen = self.num_partial, tokens[:, : self.num_seen]
        q, k, v = self.split(self.query(seen)), self.split(self.key(seen)), self.split(self.value(seen))
        partial = cascade_attention(
            q[:, :, :n], k[:, :, :n], v[:, :, :n], self.layer, self.depth, self.cascade,
            backend=self.attention.cascade, provider=self.attention.provider,
        )  # fmt: skip
        if self.cascade == "release":
            among_global = global_attention(q[:, :, n:], k[:, :, n:], v[:, :, n:])
            return self.merge(torch.cat([partial, among_global], dim=2))
        bypass = tokens.new_zeros(tokens.shape[0], tokens.shape[1] - n, tokens.shape[2])
        return torch.cat([self.merge(partial), bypass], dim=1)


class PartialGlobalPerception(HeadProjections):
    """PGP: cross-attention to the patches, partial tokens to their group and global tokens to all; two calls, so that
    the partial-global mask of the two together is never built."""

    def __init__(self, config: ParGoProjectorConfig, vision_dim: int, num_patches: int) -> None:
        super().__init__(config.width, vision_dim, config.heads)
        if config.soft_prompt:
            self.output = ScaledLinear(config.width, config.width, output_std=1.0)
        else:
            self.output = ZeroLinear(config.width, config.width)
        self.groups = PatchGroups.uniform(config.partial_tokens, num_patches, config.grouping)
        self.attention = AttentionChoice()

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        q = self.split(self.query(tokens))
        k, v = self.split(self.key(patches)), self.split(self.value(patches))
        n, choice = self.groups.num_partial, self.attention
        parts = []
        if n > 0:
            parts.append(partial_attention(q[:, :, :n], k, v, self.groups, choice.partial, choice.provider))
        if n < q.shape[2]:
            parts.append(global_attention(q[:, :, n:], k, v))
        return self.merge(torch.cat(parts, dim=2))


class PargoLayer(GradientCheckpointingLayer):
    """One layer, pre-norm with residuals: CPP -> PGP -> FFN. `cascade: none` leaves CPP out."""

    def __init__(self, config: ParGoProjectorConfig, vision_dim: int, num_patches: int, layer: int) -> None:
        super().__init__()
        # Without partial tokens only the release mask leaves someone to attend to: the global ones (a Q-Former).
        self.has_cascade = config.cascade == "release" or (config.cascade != "none" and config.partial_tokens > 0)
        if self.has_cascade:
            self.cascade_norm = nn.LayerNorm(config.width, config.norm_eps)
            self.cascade = CascadedPartialPerception(config, layer)
        self.perception_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.perception = PartialGlobalPerception(config, vision_dim, num_patches)
        self.ffn_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.width, config.ffn_width), nn.GELU(), nn.Linear(config.ffn_width, config.width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        if self.has_cascade:
            tokens = tokens + self.dropout(self.cascade(self.cascade_norm(tokens)))
        tokens = tokens + self.dropout(self.perception(self.perception_norm(tokens), patches))
        return tokens + self.dropout(self.ffn(self.ffn_norm(tokens)))


class PostNormLayer(PargoLayer):
    """The same modules in BERT's order, LayerNorm over each residual sum. What bypasses CPP bypasses its norm, too."""

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        if self.has_cascade:
            seen = self.cascade.num_seen
            normed = self.cascade_norm(tokens + self.dropout(self.cascade(tokens)))
            tokens = torch.cat([normed[:, :seen], tokens[:, seen:]], dim=1)
        tokens = self.perception_norm(tokens + self.dropout(self.perception(tokens, patches)))
        return self.ffn_norm(tokens + self.dropout(self.ffn(tokens)))


class PargoProjector(nn.Module):
    """Patches `(images, patches, vision_dim)` -> visual tokens `(images, partial + global, llm_dim)`, partial first.

    Raises:
        ValueError: more partial tokens than patches, or block grouping of patches that fill no square.
    """

    def __init__(self, config: ParGoProjectorConfig, vision_dim: int, llm_dim: int, num_patches: int) -> None:
        super().__init__()
        self.num_patches = num_patches
        self.post = config.norm == "post"
        self.patch_norm = nn.Identity() if self.post else nn.LayerNorm(vision_dim, config.norm_eps)
        self.tokens = TokenTable(config.visual_tokens, config.width, config.query_std)
        self.positions = None
        if config.query_positions:
            self.positions = TokenTable(config.visual_tokens, config.width, POSITION_STD)
        if self.post:
            self.token_norm = nn.LayerNorm(config.width, config.norm_eps)
            self.token_dropout = nn.Dropout(config.dropout)
        layer = PostNormLayer if self.post else PargoLayer
        self.layers = nn.ModuleList(layer(config, vision_dim, num_patches, n + 1) for n in range(config.layers))
        self.final_norm = nn.Identity() if self.post else nn.LayerNorm(config.width, config.norm_eps)
        self.output = token_output(config, config.width, llm_dim)

    def set_attention(self, choice: AttentionChoice) -> None:
        """Compute attention as `choice` says from now on; numbers stay the same."""
        for module in self.modules():
            if hasattr(module, "attention"):
                module.attention = choice

    def first_tokens(self, num_images: int) -> torch.Tensor:
        """What the first layer starts from, `(images, partial + global, width)`."""
        tokens = self.tokens(num_images)
        if self.positions is not None:
            tokens = tokens + self.positions(num_images)
        return self.token_dropout(self.token_norm(tokens)) if self.post else tokens

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        if patches.shape[1] != self.num_patches:
            raise ValueError(
                f"the vision encoder gave {patches.shape[1]} patches per picture but the projector was built for "
                f"{self.num_patches}: the picture size differs from vision_config.image_size"
            )
        patches = self.patch_norm(patches)
        tokens = self.first_tokens(patches.shape[0])
        for layer in self.layers:
            tokens = layer(tokens, patches)
        return self.output(self.final_norm(tokens))
