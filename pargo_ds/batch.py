"""Batch: the packed contract between data and training.

A pack is one row of several samples, one after another, without padding and without an attention
mask: position ids restart at each sample and `cu_seqlens` says where each one begins. The same
samples give the same numbers whether packed or alone (tests/model: leak test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100
INPUTS = ("input_ids", "labels", "position_ids", "cu_seqlens", "pixel_values")
"""The tensors of a batch that a model's forward takes."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank.

    Axes: one row, tokens of all samples, images of all samples in order.
    """

    input_ids: torch.Tensor
    """(1, tokens) int64; each image is a run of image tokens."""
    labels: torch.Tensor
    """(1, tokens) int64, aligned with input_ids; IGNORE_INDEX where nothing is learned."""
    position_ids: torch.Tensor
    """(1, tokens) int64, from 0 in every sample."""
    cu_seqlens: torch.Tensor
    """(samples + 1,) int32, cumulative lengths."""
    max_seqlen: int
    pixel_values: torch.Tensor
    """(images, 3, height, width) uint8; images may be 0."""
    sample_ids: tuple[str, ...]
    """Ids of the samples, for messages; an empty pack has none."""

    @property
    def num_tokens(self) -> int:
        """Tokens of real samples (an empty pack has none)."""
        if not self.sample_ids:
            return 0
        return int(self.input_ids.shape[1])

    @property
    def num_images(self) -> int:
        """Images of all samples."""
        return int(self.pixel_values.shape[0])

    @property
    def num_targets(self) -> int:
        """Target tokens: labels that count after the shift by one."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())

    def model_inputs(self, device: torch.device | str) -> dict:
        """Return the keyword arguments for the model's forward, with tensors on `device`;
        max_seqlen stays a Python int.

        Training needs only the loss, so no logits are returned: inside the loss, logits over the
        whole vocabulary exist at target positions only.
        """
        tensors = {name: getattr(self, name).to(device, non_blocking=True) for name in INPUTS}
        return {
            **tensors,
            "max_seqlen": self.max_seqlen,
            "use_cache": False,
            "return_logits": False,
        }


def join(packs: Sequence[Batch]) -> Batch:
    """Put packs behind one another into one row; empty packs add nothing to it.

    Example: cu_seqlens [0 3 5] and [0 4] -> [0 3 5 9].
    """
    filled = [one for one in packs if one.sample_ids] or list(packs[:1])
    if len(filled) == 1:
        return filled[0]
    lengths = torch.cat([one.cu_seqlens.diff() for one in filled])
    return Batch(
        input_ids=torch.cat([one.input_ids for one in filled], dim=1),
        labels=torch.cat([one.labels for one in filled], dim=1),
        position_ids=torch.cat([one.position_ids for one in filled], dim=1),
        cu_seqlens=F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32),
        max_seqlen=max(one.max_seqlen for one in filled),
        pixel_values=torch.cat([one.pixel_values for one in filled]),
        sample_ids=tuple(chain.from_iterable(one.sample_ids for one in filled)),
    )


def fill(batch: Batch, tokens: int, longest: int) -> Batch:
    """Fill a row up to `tokens` tokens with samples of at most `longest` tokens, of which nothing is
    learned and which no other sample sees, so that all rows have one shape. `max_seqlen` is then
    `longest`.

    Raises ValueError for a row of more than `tokens` tokens.

    Example: cu_seqlens [0 3 5], filled to 12 with at most 4 -> [0 3 5 9 12].
    """
    present = batch.input_ids.shape[1]
    if present > tokens:
        raise ValueError(f"a row of {present} tokens cannot be filled to {tokens}")
    starts = torch.arange(present, tokens, longest)
    places = torch.arange(tokens - present)
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, tokens - present)),
        labels=F.pad(batch.labels, (0, tokens - present), value=IGNORE_INDEX),
        position_ids=torch.cat([batch.position_ids, places[None] % longest], dim=1),
        cu_seqlens=torch.cat([batch.cu_seqlens, (starts + longest).clamp(max=tokens).int()]),
        max_seqlen=longest,
    )


def split_into_rows(packs: Sequence[Batch], most: int) -> list[Sequence[Batch]]:
    """Divide the packs of a step into as few rows as hold at most `most` packs each, in order; their
    numbers differ by one at most.

    Example: five packs, at most two -> rows of 2, 2 and 1.
    """
    rows = math.ceil(len(packs) / most)
    bounds = [math.ceil(len(packs) * row / rows) for row in range(rows + 1)]
    return [packs[begin:end] for begin, end in pairwise(bounds)]


class ConversationEncoder(Protocol):
    """What the data code needs from a processor; the model's ParGoProcessor provides it.

    The caller passes the processor to the data code. So training gets the same ids and pixels as
    inference, although `data` does not import `model`.
    """

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""

    @property
    def visual_tokens(self) -> int:
        """Number of image tokens by which one image is represented in the ids of a text."""

    def encode_conversation(self, turns: Sequence[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Return ids and labels of equal length; IGNORE_INDEX where nothing is learned.

        Raises ValueError for turns that cannot be rendered without loss.
        """

    def pixels(self, image: Any) -> torch.Tensor:
        """Return an image (PIL, or uint8 RGB) as uint8 `(3, image_size, image_size)`."""

    def text_fingerprint(self) -> str:
        """Return a hash of all settings that change the ids, those for image tokens included."""

    def fingerprint(self) -> str:
        """Return a hash of all settings that change the ids or the pixels."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample as the model will see it, before packing."""

    sample_id: str
    input_ids: list[int]
    labels: list[int]
    pixels: torch.Tensor
    """(images, 3, height, width) uint8."""


def pack(samples: list[Encoded], image_size: int) -> Batch:
    """Concatenate samples into one Batch; no samples give an empty pack (two ignored tokens, no
    image).

    Example: lengths 3 and 2 -> position_ids [0 1 2 0 1], cu_seqlens [0 3 5].
    """
    if not samples:
        return Batch(
            input_ids=torch.zeros(1, 2, dtype=torch.long),
            labels=torch.full((1, 2), IGNORE_INDEX),
            position_ids=torch.arange(2)[None],
            cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
            max_seqlen=2,
            pixel_values=torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8),
            sample_ids=(),
        )
    lengths = torch.tensor([len(s.input_ids) for s in samples])
    # The first token of a sample must not be a target: its prediction would read the sample before
    # it.
    labels: list[int] = []
    for sample in samples:
        labels += [IGNORE_INDEX, *sample.labels[1:]]
    ids = list(chain.from_iterable(sample.input_ids for sample in samples))
    return Batch(
        input_ids=torch.tensor(ids)[None],
        labels=torch.tensor(labels)[None],
        position_ids=torch.cat([torch.arange(n) for n in lengths.tolist()])[None],
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(torch.int32),
        max_seqlen=int(lengths.max()),
        pixel_values=torch.cat([s.pixels for s in samples]),
        sample_ids=tuple(s.sample_id for s in samples),
    )
