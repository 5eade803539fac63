"""A batch -> the model's arguments on a rank's device, without the host ever waiting for it."""

from __future__ import annotations

from typing import Any

import torch

from pargo_ds.batch import Batch
from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.model.places import Places


def device_inputs(
    batch: Batch, model: ParGoForConditionalGeneration, device: torch.device
) -> dict[str, Any]:
    """Return the keyword arguments of the model's forward for a packed batch, with tensors on
    `device`; the loss alone is asked for.

    What the host has to know of the batch (where images and targets stand) is found here, on the
    CPU, and what moves to a GPU moves from pinned memory. Raises ValueError for a pack whose
    positions do not restart at its boundaries.
    """

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    places = model.places(
        batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens, batch.max_seqlen
    )
    return {
        "input_ids": moved(batch.input_ids),
        "position_ids": moved(batch.position_ids),
        "cu_seqlens": moved(batch.cu_seqlens),
        "max_seqlen": batch.max_seqlen,
        "pixel_values": moved(batch.pixel_values),
        "places": Places(*map(moved, places)),
        "use_cache": False,
        "return_logits": False,
    }
