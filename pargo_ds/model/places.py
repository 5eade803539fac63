"""Where images and targets stand in a batch, as indices that are worked out on the host.

To count image tokens, or to pick positions by a mask, the host has to wait until a GPU has computed
the mask. Whoever has the ids on the CPU (a trainer) finds the places there and hands them to
`forward`, which then asks the device nothing.

Axis legend: ids and labels are `(rows, tokens)`; places are positions in the flattened
`(rows * tokens,)`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .configuration_pargo import IGNORE_INDEX


class Places(NamedTuple):
    """Indices into a batch, all int64."""

    images: torch.Tensor
    """`(visual tokens of all images,)`, where they go, in order."""
    kept: torch.Tensor
    """`(targets,)`, positions whose next token is a target."""
    targets: torch.Tensor
    """`(targets,)`, those next tokens."""


def find_places(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    image_token_id: int,
) -> Places:
    """Find the places of the images and of the targets. On a GPU the host waits for it."""
    images = flat_places(input_ids == image_token_id)
    return Places(images, *find_targets(labels, cu_seqlens, image_token_id))


def find_targets(
    labels: torch.Tensor, cu_seqlens: torch.Tensor | None, image_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find `kept` and `targets` of Places. Nothing is to be predicted at the end of a row or of a
    packed sample, nor an image token, which is never generated (collators that copy input_ids have
    them).
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    if cu_seqlens is not None:
        targets[:, cu_seqlens[1:].long() - 1] = IGNORE_INDEX
    targets = targets.masked_fill(targets == image_token_id, IGNORE_INDEX).flatten()
    kept = flat_places(targets != IGNORE_INDEX)
    return kept, targets[kept]


def flat_places(mask: torch.Tensor) -> torch.Tensor:
    """Return where a mask of any shape is True once flattened, int64 `(True values,)`."""
    return mask.flatten().nonzero().squeeze(1)
