"""What the packs of a run are assumed to hold; data that is not here cannot be counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pargo_ds.batch import IGNORE_INDEX, Batch, Encoded, pack
from pargo_ds.config import RunConfig
from pargo_ds.errors import ConfigError

FILL = 0.998
"""Of a pack's tokens, as packs are planned here (docs/benchmarks.md)."""
TARGETS = 0.11
"""Of a pack's tokens: 450 of 4,096 in packs of captioned images."""


@dataclass(frozen=True)
class Load:
    """A typical pack: samples of one image each and equal lengths."""

    tokens: int
    images: int
    targets: int

    def batch(self) -> Batch:
        """Such a pack, with images of one pixel: sizes are asked of the model, not of them."""
        samples = max(1, self.images)
        lengths = [self.tokens // samples + (i < self.tokens % samples) for i in range(samples)]
        wanted = [self.targets // samples + (i < self.targets % samples) for i in range(samples)]
        pixels = torch.zeros(1 if self.images else 0, 3, 1, 1, dtype=torch.uint8)
        encoded = []
        for number, (length, targets) in enumerate(zip(lengths, wanted, strict=True)):
            labels = [IGNORE_INDEX] * (length - targets) + [1] * targets
            encoded.append(
                Encoded(sample_id=str(number), input_ids=[0] * length, labels=labels, pixels=pixels)
            )
        return pack(encoded, 1)


def with_rows_as_packs(run: RunConfig, ranks: int) -> RunConfig:
    """Return the run whose packs are as large as the rows that this one computes at once
    (batch.packs_per_forward); the plan counts micro-batches of one pack.

    Raises ConfigError where the rows of a step would not all be of the same size.
    """
    batch = run.batch
    if run.check_ranks(ranks) % batch.packs_per_forward:
        raise ConfigError(
            f"batch.packs_per_forward: {batch.packs_per_forward} does not divide the "
            f"{run.check_ranks(ranks)} packs of a rank; the plan needs rows of one size"
        )
    larger = {
        "tokens_per_pack": batch.tokens_per_row,
        "images_per_pack": batch.images_per_row,
        "packs_per_step": batch.packs_per_step // batch.packs_per_forward,
        "packs_per_forward": 1,
    }
    return run.model_copy(update={"batch": batch.model_copy(update=larger)})


def typical_load(run: RunConfig, visual: int, images: int | None, targets: int | None) -> Load:
    """As full as packs are, with as many images as fit beside some text unless `images` says so.

    `visual`: tokens of an image. Raises ConfigError for images that do not fit into a pack.
    """
    tokens = int(FILL * run.batch.tokens_per_pack)
    most = min(run.batch.images_per_pack, tokens // (visual + 2))
    if images is not None and not 0 <= images <= most:
        raise ConfigError(f"--images {images} do not fit into a pack; at most {most} do")
    chosen = most if images is None else images
    free = tokens - chosen * visual
    wanted = round(TARGETS * tokens) if targets is None else targets
    return Load(tokens, chosen, max(1, min(wanted, free - max(1, chosen))))
