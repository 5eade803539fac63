"""A checkpoint of a tiny run as training writes it, with values in all that trains, and the model that it is of."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pargo_ds.checkpoint.fragments import FOLDER, WEIGHT, Fragment, as_tensors, fragment_file
from pargo_ds.checkpoint.frozen import frozen_hashes, frozen_shapes
from pargo_ds.checkpoint.manifest import FORMAT_VERSION, Manifest, describe_file
from pargo_ds.checkpoint.store import versions
from pargo_ds.config import RunConfig
from pargo_ds.model import ParGoProcessor
from pargo_ds.training import assembly
from pargo_ds.training.freezing import apply_freezing


def trained_model(run: RunConfig, processor: ParGoProcessor) -> nn.Module:
    """The model of a run as training builds it, in evaluation mode; what trains has left its first values far behind.

    Its numbers fit the run's precision, so that no export has to round them. Raises as assembly and freezing do.
    """
    model = assembly.load_model(run, processor, None)
    apply_freezing(model, run.train)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = moved(parameter.data)
    return model.eval()


def moved(values: torch.Tensor) -> torch.Tensor:
    """Other values of the size that trained ones have."""
    noise = torch.randn(values.shape)
    new = noise * values.shape[-1] ** -0.5 if values.ndim > 1 else values.float() + 0.1 * noise
    return new.to(values.dtype)


def write_checkpoint(run: RunConfig, model: nn.Module, folder: Path) -> Path:
    """What the run would save after its first step, on one rank."""
    trained = {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
    (folder / FOLDER).mkdir(parents=True)
    pieces = [Fragment(name=n, start=0, kinds={WEIGHT: values.reshape(-1)}) for n, values in trained.items()]
    file = folder / fragment_file(0)
    save_file(as_tensors(pieces), file)
    Manifest(
        format_version=FORMAT_VERSION,
        step=1,
        world_size=1,
        zero_stage=0,
        model_fingerprint=assembly.model_fingerprint(model),
        data_state={},
        config=run.model_dump(mode="json"),
        frozen_sources=assembly.frozen_sources(run),
        versions=versions(),
        files={fragment_file(0): describe_file(file)},
        parameters={name: list(values.shape) for name, values in trained.items()},
        frozen=frozen_hashes(model),
        frozen_shapes=frozen_shapes(model),
    ).write(folder)
    return folder
