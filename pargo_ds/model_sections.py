"""Sections of the run file that describe the model: vision encoder, LLM, attention. The sections
of the projectors are in projector_sections.py.
"""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pargo_ds.addresses import LocalPath, ModelName, model_name
from pargo_ds.section import Section


class VisionSection(Section):
    """The vision encoder. The paper uses EVA-02-CLIP-L/14 at 336 px."""

    library: Literal["timm", "transformers"]
    """Library that builds the encoder."""
    name: ModelName
    """Architecture of timm; with library: transformers a hub name or a local folder."""
    revision: str | None = None
    """Hub revision (commit, tag or branch) of a transformers encoder."""
    weights: LocalPath | None = None
    """Local safetensors file (default: the weights of `name` from the hub). "random": the encoder
    is untrained.
    """
    image_size: int = Field(gt=0)
    """Side in pixels of the square image that the encoder gets."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """How an image becomes square. stretch: both sides are scaled separately; crop: the longer side
    is cut at both ends; pad: grey bars are added to the shorter side.
    """
    feature_layer: int = Field(default=-1, le=-1)
    """Block whose output the projector gets, before the encoder's final norm. -1: the last block;
    -2: the block before it.
    """
    feature_norm: bool = False
    """true: a frozen LayerNorm is applied to the features, as in the authors' release."""
    architecture: dict[str, Any] | None = None
    """Architecture of a transformers encoder as in its config.json, so that --dry-run needs no
    files.
    """

    @model_validator(mode="before")
    @classmethod
    def _timm_s_name(cls, value: Any) -> Any:
        if (
            not isinstance(value, dict)
            or value.get("library") != "timm"
            or not isinstance(value.get("name"), str)
        ):
            return value
        return {**value, "name": model_name(value["name"]).removeprefix("timm/")}

    @model_validator(mode="after")
    def _library_takes_it(self) -> VisionSection:
        ignored = [key for key in ("revision", "architecture") if getattr(self, key) is not None]
        if self.library == "timm" and ignored:
            raise ValueError(
                f"timm's encoders take no {ignored[0]}; remove it, or set library: transformers"
            )
        return self


class AttentionSection(Section):
    """Which attention kernels are used. They differ in speed and memory, not in results, so the
    section may change when a run is continued.
    """

    partial: Literal["auto", "fused", "flash_window", "flash_varlen", "dense"] = "auto"
    """Kernel of the attention from partial tokens to their patches."""
    cascade: Literal["auto", "flash", "dense"] = "auto"
    """Kernel of the attention among partial tokens."""
    provider: Literal["auto", "torch", "flash_attn_2", "flash_attn_3", "flash_attn_4"] = "auto"
    """Library whose FlashAttention is used. No FlashAttention runs on a CPU; `auto` computes the
    same in plain torch there.
    """
    llm: Literal["auto", "varlen", "sdpa", "eager"] = "auto"
    """Kernel of the LLM's attention over packed sequences."""


class LLMSection(Section):
    """The language model: a causal LM of transformers. A start of a run checks whether the family
    computes packed sequences exactly (docs/models.md).
    """

    name: ModelName
    """Hub name or local folder."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: an untrained LLM is built from `architecture`, for tests and measurements of
    speed.
    """
    architecture: dict[str, Any] | None = None
    """Architecture of the LLM as in its config.json, so that --dry-run needs no files. A run
    compares it with the LLM's real config.json.
    """
    prompt: Literal["chat", "paper"] = "chat"
    """chat: conversations are written with the LLM's chat template; paper: as in the authors'
    release.
    """
    system_prompt: str | None = None
    """System message instead of the chat template's default one (default: the template decides)."""
    chat_template: LocalPath | None = None
    """File with a Jinja chat template that replaces the tokenizer's template, in training and in
    the export.
    """
    template_date: str | None = None
    """Date such as 2026-01-31 that is used where a chat template asks for today's date. Without it
    such a template is refused, because conversations would change from day to day.
    """

    @field_validator("template_date", mode="before")
    @classmethod
    def _date_is_iso(cls, value: Any) -> Any:
        try:
            return value if value is None else datetime.date.fromisoformat(str(value)).isoformat()
        except ValueError as error:
            raise ValueError(f"{value!r} is no date; expected one such as 2026-01-31") from error
