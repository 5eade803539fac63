"""Sections of the run file that describe the data: the mixture of shards, and the packs that are made
of it.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pargo_ds.addresses import LocalPath
from pargo_ds.section import Section

SIZE = re.compile(r"\s*(\d+b?|\d+(\.\d+)?\s*[kmgt]b)\s*", re.IGNORECASE)
"""A number of bytes in the notation that `streaming` reads."""


class BatchSection(Section):
    """Packed batches. A pack is a row of whole conversations without padding, and one micro-batch
    of one rank.
    """

    tokens_per_pack: int = Field(ge=2)
    """Upper bound of the tokens of a pack, visual tokens included."""
    images_per_pack: int = Field(ge=1)
    """Upper bound of the images of a pack; it limits the memory of the vision encoder."""
    packs_per_step: int = Field(ge=1)
    """Number of packs of one optimizer step, summed over all ranks. Each rank accumulates the
    gradients of packs_per_step / ranks packs.
    """
    packs_per_forward: int = Field(1, ge=1)
    """At most this many of a rank's packs in a step run through the model together, as one longer
    row: ZeRO-3 gathers the weights less often, and activations take as many times the memory. The
    order of the data and what is learned do not depend on it, so a run may be continued with
    another number.
    """

    @property
    def tokens_per_row(self) -> int:
        """Upper bound of the tokens that run through the model together."""
        return self.tokens_per_pack * self.packs_per_forward

    @property
    def images_per_row(self) -> int:
        """Upper bound of the images that run through the model together."""
        return self.images_per_pack * self.packs_per_forward


class CaptionPrompts(Section):
    """In caption training: the text of the user's turn beside the image, for each kind of
    caption. An empty text leaves the image alone.
    """

    coarse: str = ""
    """The prompt before coarse captions."""
    detailed: str = ""
    """The prompt before detailed captions."""


class StreamSection(Section):
    """One folder of shards and its share of the mixture. A plain word is short for its path; keys
    for texts that are not given here are taken from the section `data`.
    """

    path: LocalPath
    """Folder of MDS shards, or the address of such a folder in an object store
    (s3://bucket/folder).
    """
    repeat: float | None = Field(default=None, gt=0)
    """How often each conversation occurs in an epoch (default: 1). 0.5: one half of the
    conversations in one epoch, the other half in the next one.
    """
    weight: float | None = Field(default=None, gt=0)
    """Share of the epoch's conversations, relative to the weights of the other streams. Give
    either weights or repeats.
    """
    text: Literal["captions", "turns"] | None = None
    """As `data.text`, for this stream."""
    caption: Literal["coarse", "detailed", "both"] | None = None
    """As `data.caption`, for this stream."""
    caption_prompts: CaptionPrompts | None = None
    """As `data.caption_prompts`, for this stream."""


class DataSection(Section):
    """The MDS shards of the run, and which text of each sample is trained."""

    train: list[StreamSection] = Field(min_length=1)
    """One path, or a list of streams that are mixed. The same path may occur twice with different
    captions.
    """
    validation: LocalPath | None = None
    """Folder of MDS shards with held-out samples; without it no validation loss is computed."""
    text: Literal["captions", "turns"]
    """Train on the sample's captions (stage 1) or on its conversation turns (stage 2)."""
    caption: Literal["coarse", "detailed", "both"] = "both"
    """Which caption is trained. both: every sample occurs once with each of its two captions."""
    caption_prompts: CaptionPrompts = CaptionPrompts()
    """What the user says beside the image before a caption."""
    epoch_items: int | None = Field(default=None, ge=1)
    """Number of conversations in an epoch of a mixture by weight (default: as many as all streams
    hold together).
    """
    too_long: Literal["error", "skip"] = "error"
    """What happens to conversations that are longer than batch.tokens_per_pack: an error that names
    the first one, or they are left out and counted.
    """
    refused: Literal["error", "skip"] = "error"
    """What happens to samples that make no conversation, because the chat template refuses their
    turns or a caption is missing: an error that names the first one, or they are left out and
    counted.
    """
    workers: int = Field(default=2, ge=0)
    """Number of loader processes of each rank; 0: the rank reads its data itself."""
    canonical_nodes: int = Field(default=1, ge=1)
    """Number of parts into which the shards are divided. A node reads whole parts, so it downloads
    only its share. Set it to the number of nodes or to a multiple of it; it must divide
    batch.packs_per_step and cannot change within a run.
    """
    cache: LocalPath | None = None
    """Folder on a local disk of each node for the shards of an object store (default: a folder in
    the system's temporary folder).
    """
    cache_limit: str | None = None
    """Upper bound of the size of the cache, such as 200gb; the shards that were not used for the
    longest time are deleted first. It concerns object stores only.
    """

    @field_validator("cache_limit")
    @classmethod
    def _limit_is_a_size(cls, value: str | None) -> str | None:
        if value is not None and not SIZE.fullmatch(value):
            raise ValueError(f"{value!r} is no size; expected one such as 200gb or 500mb")
        return value

    @model_validator(mode="before")
    @classmethod
    def _path_is_stream(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "train" not in value:
            return value
        train = value["train"]
        if not isinstance(train, list):
            train = [train]
        streams = []
        for stream in train:
            streams.append({"path": stream} if isinstance(stream, str) else stream)
        return {**value, "train": streams}

    @model_validator(mode="after")
    def _mixture_is_clear(self) -> DataSection:
        weighted = [stream.weight is not None for stream in self.train]
        if any(weighted) and (
            not all(weighted) or any(stream.repeat is not None for stream in self.train)
        ):
            raise ValueError(
                "give every stream of train a weight, or none: weight and repeat do not go together"
            )
        if self.epoch_items is not None and not any(weighted):
            raise ValueError(
                "epoch_items is for a mixture by weight; with repeat the streams decide the epoch's size"
            )
        return self

    def of_stream(self, stream: StreamSection) -> DataSection:
        """Return this section with the texts that one stream asks for."""
        own = {name: getattr(stream, name) for name in ("text", "caption", "caption_prompts")}
        return self.model_copy(
            update={name: value for name, value in own.items() if value is not None}
        )
