"""The section `projector` of the run file: one class for each projector type, with its options,
their published defaults and their ranges.

The keys are those of the type's configuration in `pargo_ds/model/projector_<type>.py`, whose
docstring names the source. That file also checks what depends on the number of patches.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pargo_ds.section import Section

Count = Annotated[int, Field(ge=1)]


class ProjectorSection(Section):
    """Options that every projector has."""

    soft_prompt: bool = True
    """true: a learned vector is added to each visual token, so that training starts from a good
    prompt that does not depend on the image (our addition, docs/learning.md). false: the published
    projector.
    """
    patch_norm: bool = True
    """true: a LayerNorm is applied to the patches first (our addition); see
    train.projector.calibration_images for its initial weights. false: the published projector.
    """

    @property
    def fixed_tokens(self) -> int | None:
        """Number of visual tokens of an image, if the section alone decides it; None if it depends
        on the number of patches.
        """
        return getattr(self, "tokens", None)


class HeadsSection(ProjectorSection):
    """Options of projectors that have attention heads."""

    width: Count
    """Hidden width of the projector's layers."""
    heads: Count
    """Number of attention heads; it must divide the width."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> HeadsSection:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class ParGoSection(HeadsSection):
    """The partial-global projector. The default token counts are those of the paper (equation
    1).
    """

    type: Literal["pargo"] = "pargo"
    partial_tokens: int = Field(default=288, ge=1)
    """Number of partial tokens, each of which attends to its group of patches only."""
    global_tokens: int = Field(default=16, ge=0)
    """Number of global tokens, which attend to all patches."""
    layers: Count = 6
    """Number of layers."""
    width: Count = 1024
    heads: Count = 16
    cascade: Literal["shifted", "centered", "each_side", "none", "release"] = "shifted"
    """Which partial tokens attend to each other in each layer; the table in `cascade_window` of
    pargo_ds/model/masks.py shows the five rules.
    """
    grouping: Literal["raster", "block"] = "raster"
    """Which patches a partial token attends to. raster: consecutive patches in raster order (the
    paper); block: a rectangle of the patch grid (our addition).
    """
    norm: Literal["pre", "post"] = "pre"
    """Place of the LayerNorms. pre: before each sub-layer; post: after it, as in BERT and in the
    authors' release. With post set patch_norm: false and vision.feature_norm: true, because the
    release normalizes the features in the vision encoder.
    """
    norm_eps: float = Field(default=1e-5, gt=0)
    """Epsilon of the projector's LayerNorms; the authors' release has 1e-12."""
    query_positions: bool = False
    """true: learned position embeddings are added to the partial and global tokens, as in the
    authors' release.
    """

    @property
    def fixed_tokens(self) -> int:
        return self.partial_tokens + self.global_tokens


class LinearSection(ProjectorSection):
    """LLaVA: a Linear layer applied to each patch."""

    type: Literal["linear"]


class MLPSection(ProjectorSection):
    """LLaVA-1.5: an MLP applied to each patch."""

    type: Literal["mlp"]
    depth: Count = 2
    """Number of Linear layers, with a GELU between two of them."""


class MLPConcatSection(ProjectorSection):
    """The linear and MLP baselines of ParGo's release: an MLP over concatenated patches."""

    type: Literal["mlp_concat"]
    joined: Count = 4
    """Number of consecutive patches in raster order that become one visual token; it must divide
    the number of patches.
    """
    depth: Count = 2
    """Number of Linear layers, with a GELU between two of them; 1: the release's linear
    baseline.
    """


class QFormerSection(HeadsSection):
    """BLIP-2: learned queries in a BERT with cross-attention to the patches."""

    type: Literal["qformer"]
    tokens: Count = 32
    """Number of learned queries, each of which becomes a visual token."""
    layers: Count = 12
    """Number of layers."""
    width: Count = 768
    heads: Count = 12
    ffn_width: Count = 3072
    """Inner width of the feed-forward networks."""
    cross_every: Count = 2
    """Layers 0, cross_every, 2 * cross_every, ... have cross-attention to the patches."""


class ResamplerSection(ProjectorSection):
    """Flamingo: the Perceiver resampler. Its width is that of the patches."""

    type: Literal["resampler"]
    tokens: Count = 64
    """Number of learned latents, each of which becomes a visual token."""
    layers: Count = 6
    """Number of layers."""
    heads: Count = 8
    """Number of attention heads."""
    head_dim: Count = 64
    """Width of one attention head."""
    ffn_multiple: Count = 4
    """The inner width of the feed-forward networks is this number times the width."""


class HoneybeeResamplerSection(HeadsSection):
    """Honeybee: the resampler with which its authors compare their abstractors."""

    type: Literal["honeybee_resampler"]
    tokens: Count = 64
    """Number of learned queries, each of which becomes a visual token."""
    layers: Count = 6
    """Number of layers."""
    width: Count = 1024
    heads: Count = 16
    ffn_width: Count = 4096
    """Inner width of the feed-forward networks."""


class CAbstractorSection(ProjectorSection):
    """Honeybee: convolutions, pooling to a square grid, convolutions, MLP."""

    type: Literal["c_abstractor"]
    tokens: Count = 144
    """Number of visual tokens; it must be a square number."""
    depth: Count = 3
    """Number of bottleneck blocks before the pooling, and the same number after it."""
    width: Count = 1024
    """Number of channels of the convolutions."""
    mlp_depth: Count = 2
    """Number of Linear layers at the end, with a SiLU between two of them."""
    positions: bool = True
    """true: learned position embeddings are added to the patches."""


class DAbstractorSection(HeadsSection):
    """Honeybee: the decoder of Deformable DETR with learned queries."""

    type: Literal["d_abstractor"]
    tokens: Count = 144
    """Number of visual tokens; it must be a square number."""
    layers: Count = 6
    """Number of layers."""
    width: Count = 1024
    heads: Count = 8
    ffn_width: Count = 1024
    """Inner width of the feed-forward networks."""
    points: Count = 4
    """Number of points of the patch grid that each head of a query samples."""
    positions: bool = True
    """true: learned position embeddings are added to the patches."""


class AdaptivePoolSection(ProjectorSection):
    """DeCo: the patches are pooled to a square grid; an MLP follows."""

    type: Literal["adaptive_pool"]
    tokens: Count = 144
    """Number of visual tokens; it must be a square number."""


class PixelShuffleSection(ProjectorSection):
    """InternVL: neighbouring patches are concatenated; LayerNorm and MLP follow."""

    type: Literal["pixel_shuffle"]
    scale: Count = 2
    """A square of scale x scale patches becomes one visual token."""


class PatchMergerSection(ProjectorSection):
    """Qwen2.5-VL: after an RMSNorm, neighbouring patches are concatenated; an MLP follows."""

    type: Literal["patch_merger"]
    scale: Count = 2
    """A square of scale x scale patches becomes one visual token."""


class LDPv2Section(ProjectorSection):
    """MobileVLM V2: MLP, pooling to a square grid, a convolution that encodes positions."""

    type: Literal["ldpv2"]
    tokens: Count = 144
    """Number of visual tokens; it must be a square number."""


class TokenPackerSection(HeadsSection):
    """TokenPacker: each patch of a pooled image attends to the patches from which it was pooled."""

    type: Literal["token_packer"]
    scale: Count = 2
    """A square of scale x scale patches becomes one visual token."""
    width: Count = 1024
    heads: Count = 8


AnyProjectorSection = Annotated[
    ParGoSection
    | LinearSection
    | MLPSection
    | MLPConcatSection
    | QFormerSection
    | ResamplerSection
    | HoneybeeResamplerSection
    | CAbstractorSection
    | DAbstractorSection
    | AdaptivePoolSection
    | PixelShuffleSection
    | PatchMergerSection
    | LDPv2Section
    | TokenPackerSection,
    Field(discriminator="type"),
]
"""The section of any projector; pydantic chooses the class by the key `type`."""
