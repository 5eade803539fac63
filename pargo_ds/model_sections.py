"""Sections of the run file that say what the model is made of: vision encoder, projector, LLM, attention."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pargo_ds.addresses import LocalPath, ModelName, model_name
from pargo_ds.section import Section


class VisionSection(Section):
    """The frozen picture encoder. Source of the paper's choice: EVA-02-CLIP-L/14 at 336 px."""

    library: Literal["timm", "transformers"]
    name: ModelName
    """timm architecture, or a Hugging Face hub name or folder."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    weights: LocalPath | None = None
    """Local safetensors file; without it the weights come from the hub under `name`. "random": untrained."""
    image_size: int = Field(gt=0)
    """Side of the square picture in pixels."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    feature_layer: int = Field(default=-1, le=-1)
    """-1: the last block before the final norm; -2: the one before it."""
    feature_norm: bool = False
    """A frozen LayerNorm over the features (the authors' release has one)."""
    architecture: dict[str, Any] | None = None
    """Architecture numbers of a transformers encoder, so that --dry-run needs no files."""

    @model_validator(mode="before")
    @classmethod
    def _timm_s_name(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("library") != "timm" or not isinstance(value.get("name"), str):
            return value
        return {**value, "name": model_name(value["name"]).removeprefix("timm/")}

    @model_validator(mode="after")
    def _library_takes_it(self) -> VisionSection:
        ignored = [key for key in ("revision", "architecture") if getattr(self, key) is not None]
        if self.library == "timm" and ignored:
            raise ValueError(f"timm's encoders take no {ignored[0]}; remove it, or set library: transformers")
        return self


class ProjectorSection(Section):
    """The partial-global projector; defaults are the paper's token counts (equation 1)."""

    type: str = "pargo"
    partial_tokens: int = Field(default=288, ge=1)
    global_tokens: int = Field(default=16, ge=0)
    layers: int = Field(default=6, ge=1)
    width: int = Field(default=1024, ge=1)
    heads: int = Field(default=16, ge=1)
    cascade: Literal["shifted", "centered", "each_side", "none", "release"] = "shifted"
    grouping: Literal["raster", "block"] = "raster"
    """Patches of a partial token: a run of the raster order (the paper), or a 2-D block (ours)."""
    norm: Literal["pre", "post"] = "pre"
    """post: BERT's order, as the authors' release has it; it has no norm of the patches, so set vision.feature_norm."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Epsilon of the projector's LayerNorms; 1e-12 in the authors' release."""
    query_positions: bool = False
    """Learned position embeddings on the learned tokens, as in the authors' release."""
    soft_prompt: bool = True
    """Each visual token is a learned vector, where it starts, plus what the image says (ours, docs/learning.md); false:
    the paper's form and the release's."""

    @property
    def visual_tokens(self) -> int:
        """Tokens that one picture gives to the LLM."""
        return self.partial_tokens + self.global_tokens

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ProjectorSection:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class AttentionSection(Section):
    """How attention is computed: speed and memory, never numbers; may change between a run and its continuation."""

    partial: Literal["auto", "fused", "flash_window", "flash_varlen", "dense"] = "auto"
    """Partial tokens and their patches."""
    cascade: Literal["auto", "flash", "dense"] = "auto"
    """Partial tokens among themselves."""
    provider: Literal["auto", "torch", "flash_attn_2", "flash_attn_3", "flash_attn_4", "emulated"] = "auto"
    """Where FlashAttention comes from; emulated: in plain torch, for tests."""
    llm: Literal["auto", "varlen", "sdpa", "eager"] = "auto"
    """Packed sequences in the LLM."""


class LLMSection(Section):
    """The language model: any causal LM of transformers."""

    name: ModelName
    """Hub name or folder."""
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds an untrained LLM of `architecture` (tests, throughput measurements)."""
    architecture: dict[str, Any] | None = None
    """config.json numbers of the LLM, so that --dry-run needs no files; compared with the real ones in a run."""
    prompt: Literal["chat", "paper"] = "chat"
    """The LLM's own chat template, or the prompt of the paper's release."""
    system_prompt: str | None = None
    """Replaces the chat template's default system message; null leaves it to the template."""
    chat_template: LocalPath | None = None
    """File with a Jinja chat template that replaces the tokenizer's, for training and in the export."""
    template_date: str | None = None
    """The day (such as 2026-01-31) that is written where a chat template asks for today's date; null refuses those."""

    @field_validator("template_date", mode="before")
    @classmethod
    def _date_is_iso(cls, value: Any) -> Any:
        try:
            return value if value is None else datetime.date.fromisoformat(str(value)).isoformat()
        except ValueError as error:
            raise ValueError(f"{value!r} is no date; expected one such as 2026-01-31") from error
