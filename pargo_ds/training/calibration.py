"""The data-dependent start of a new projector: the norm of the patches gives each channel mean 0 and deviation 1.

Channels of a vision encoder differ in scale (EfficientNet-Lite0's by a factor of 80), and what all patches have in
common is much of their energy; both slow the projector down more than anything else that was tried
(docs/learning.md). After Kraehenbuehl et al., "Data-dependent initializations of CNNs" (arXiv 1511.06856).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from pargo_ds import distributed
from pargo_ds.batch import Batch
from pargo_ds.config import RunConfig

if TYPE_CHECKING:
    from pargo_ds.data.loader import PackLoader

log = logging.getLogger("pargo_ds")

FLOOR = 0.1
"""Share of the channels' median deviation that is added to each: a channel that is nearly constant stays small."""


def start_projector(run: RunConfig, model: nn.Module, loader: PackLoader, device: torch.device | str) -> None:
    """Calibrate a run's new projector on its first images; one that comes from `start_from` stays as it is. Collective.

    Raises as `PackLoader.peek` and `calibrate` do, on every rank.
    """
    images = run.train.projector.calibration_images
    if images and run.start_from is None:
        # A rank that cannot read its images must not leave the others waiting in the sum over all.
        calibrate(model, distributed.together(lambda: loader.peek(images)), device)


@torch.no_grad()
def calibrate(model: nn.Module, batches: list[Batch], device: torch.device | str) -> None:
    """Set weight and bias of `projector.patch_norm` from this rank's batches, together with those of all ranks.

    Collective, before DeepSpeed takes the model. A projector without a LayerNorm over the patches (`norm: post`) stays
    as it is. Raises ValueError when no rank has an image.
    """
    norm = model.projector.patch_norm
    if not isinstance(norm, nn.LayerNorm):
        return
    model.vision.to(device)
    was_training = model.vision.training
    model.vision.eval()
    width = norm.normalized_shape[0]
    sums = torch.zeros(2 * width + 2, dtype=torch.float64, device=device)  # of values, of squares; patches, images
    for batch in batches:
        if batch.num_images:
            patches = model.vision(batch.pixel_values.to(device)).double().flatten(0, 1)  # (images * patches, width)
            normed = F.layer_norm(patches, (width,), eps=norm.eps)
            sums[:width] += normed.sum(dim=0)
            sums[width : 2 * width] += normed.square().sum(dim=0)
            sums[-2] += len(patches)
            sums[-1] += batch.num_images
    model.vision.train(was_training)
    sums = torch.tensor(distributed.all_reduce(sums.tolist(), device), dtype=torch.float64)
    patches, images = sums[-2:].tolist()
    if not images:
        raise ValueError(
            "train.projector.calibration_images: the first samples of data.train hold no image; set it to 0"
        )
    mean = sums[:width] / patches
    deviation = (sums[width : 2 * width] / patches - mean.square()).clamp_min(0).sqrt()
    weight = 1 / (deviation + FLOOR * deviation.median())
    norm.weight.copy_(weight)
    norm.bias.copy_(-mean * weight)
    log.info(
        "the norm of the patches starts from %d training images: deviations of %d channels from %.2f to %.2f (median "
        "%.2f) become 1", images, width, deviation.min(), deviation.max(), deviation.median(),
    )  # fmt: skip
