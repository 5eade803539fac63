"""The data-dependent initialization of a new projector: the LayerNorm over the patches starts such
that each channel has mean 0 and standard deviation 1.

The channels of a vision encoder differ in scale (those of EfficientNet-Lite0 by a factor of 80),
and a large part of the patches' energy is the same in all patches. Both slow the learning of the
projector more than anything else that was tried (docs/learning.md). The method follows Kraehenbuehl
et al., "Data-dependent initializations of CNNs" (arXiv 1511.06856).
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
from pargo_ds.model import ParGoForConditionalGeneration

if TYPE_CHECKING:
    from pargo_ds.data.loader import PackLoader

log = logging.getLogger("pargo_ds")

FLOOR = 0.1
"""This share of the median standard deviation is added to the deviation of each channel, so that a
channel that is nearly constant is not amplified.
"""


def start_projector(
    run: RunConfig,
    model: ParGoForConditionalGeneration,
    loader: PackLoader,
    device: torch.device | str,
) -> None:
    """Calibrate the projector of a run on its first images. A projector that comes from
    `start_from` is not changed. Collective.

    Raises as `PackLoader.peek` and `calibrate` do, on every rank.
    """
    images = run.train.projector.calibration_images
    if images and run.start_from is None:
        # If a rank cannot read its images, the others must not wait for it in the reduction.
        calibrate(model, distributed.run_on_all_ranks(lambda: loader.peek(images)), device)


@torch.no_grad()
def calibrate(
    model: ParGoForConditionalGeneration, batches: list[Batch], device: torch.device | str
) -> None:
    """Set weight and bias of `projector.patch_norm` from the batches of all ranks. Collective.

    It must be called before DeepSpeed gets the model. A projector without a LayerNorm over the
    patches (`patch_norm: false`) is not changed. Raises ValueError when no rank has an image.
    """
    norm = model.projector.patch_norm
    if not isinstance(norm, nn.LayerNorm):
        return
    model.vision.to(device)
    was_training = model.vision.training
    model.vision.eval()
    width = norm.normalized_shape[0]
    sums = torch.zeros(
        2 * width + 2, dtype=torch.float64, device=device
    )  # of values, of squares; patches, images
    for batch in batches:
        if batch.num_images:
            patches = (
                model.vision(batch.pixel_values.to(device)).double().flatten(0, 1)
            )  # (images * patches, width)
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
