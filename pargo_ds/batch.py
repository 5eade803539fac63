"""Batch: the packed contract between data and training.

A pack is one row of several samples, one after another, without padding and without an attention mask:
position ids restart at each sample and `cu_seqlens` says where each one begins. The same samples give the same
numbers whether packed or alone (tests/model: leak test).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank. Axes: one row, tokens of all samples, images of all samples in order."""

    input_ids: torch.Tensor
    """(1, tokens) int64; each picture is a run of image tokens."""
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
    """Names of the samples, for messages; empty in an empty pack."""

    @property
    def num_tokens(self) -> int:
        """Tokens of real samples (an empty pack has none)."""
        return int(self.input_ids.shape[1]) if self.sample_ids else 0

    @property
    def num_images(self) -> int:
        return int(self.pixel_values.shape[0])

    @property
    def num_targets(self) -> int:
        """Target tokens: labels that count after the shift by one."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())

    def model_inputs(self, device: torch.device | str) -> dict:
        """Keyword arguments of the model's forward, tensors on `device`; max_seqlen stays a Python int.

        Training asks for the loss alone: logits of the whole vocabulary exist at target positions only.
        """
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "labels", "position_ids", "cu_seqlens", "pixel_values")
        }
        return {**tensors, "max_seqlen": self.max_seqlen, "use_cache": False, "return_logits": False}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample as the model will see it, before packing."""

    sample_id: str
    input_ids: list[int]
    labels: list[int]
    pixels: torch.Tensor
    """(images, 3, height, width) uint8."""


def pack(samples: list[Encoded], image_size: int) -> Batch:
    """Concatenate samples into one Batch; no samples give an empty pack (two ignored tokens, no picture).

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
    # The first token of a sample must not be a target: its prediction would read the sample before it.
    labels = [label for s in samples for label in (IGNORE_INDEX, *s.labels[1:])]
    return Batch(
        input_ids=torch.tensor([i for s in samples for i in s.input_ids])[None],
        labels=torch.tensor(labels)[None],
        position_ids=torch.cat([torch.arange(n) for n in lengths.tolist()])[None],
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(torch.int32),
        max_seqlen=int(lengths.max()),
        pixel_values=torch.cat([s.pixels for s in samples]),
        sample_ids=tuple(s.sample_id for s in samples),
    )
