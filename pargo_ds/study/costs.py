"""What a projector costs: visual tokens, parameters, milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pargo_ds.assembly.configs import run_projector, text_config, vision_config
from pargo_ds.config import RunConfig
from pargo_ds.model import Projector, build_projector
from pargo_ds.speed.timing import interleaved_medians

IMAGES = 8
"""In the batch that is timed."""


@dataclass(frozen=True)
class ProjectorSize:
    """Of one image and one projector."""

    tokens: int
    parameters: int


def projector_size(run: RunConfig) -> ProjectorSize:
    """Return the size of a run's projector, from the run file alone. Raises ValueError where the
    projector does not fit the patches.
    """
    projector = _build(run, torch.device("meta"))
    return ProjectorSize(
        projector.num_tokens, sum(parameter.numel() for parameter in projector.parameters())
    )


def projector_ms(run: RunConfig, device: torch.device) -> float:
    """Return the milliseconds for an image, forward and backward in fp32, of the projector alone
    with random weights: CPU time of one thread, or between CUDA events (speed/timing.py).
    """
    torch.manual_seed(0)
    projector = _build(run, device)
    patches = torch.randn(
        IMAGES, projector.num_patches, vision_config(run, offline=True).hidden_size, device=device
    )
    wanted = list(projector.parameters())

    def call() -> object:
        return torch.autograd.grad(projector(patches).sum(), wanted, allow_unused=True)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # CPU time counts threads that only wait for each other, too
    try:
        taken = interleaved_medians({"own": call}, device, repetitions=7, seconds=5.0)
    finally:
        torch.set_num_threads(threads)
    return taken["own"] / IMAGES


def _build(run: RunConfig, device: torch.device) -> Projector:
    vision = vision_config(run, offline=True)
    with device:
        return build_projector(
            run_projector(run),
            vision.hidden_size,
            text_config(run, offline=True).hidden_size,
            vision.num_patches,
        )
