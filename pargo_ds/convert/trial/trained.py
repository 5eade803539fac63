"""The model of a tiny run as if it had trained, and its checkpoint as training would write it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from pargo_ds import assembly
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.checkpoint.fragments import FOLDER, WEIGHT, Fragment, as_tensors, fragment_file
from pargo_ds.checkpoint.frozen import frozen_hashes
from pargo_ds.checkpoint.manifest import FORMAT_VERSION, Manifest, describe_file, versions
from pargo_ds.config import RunConfig
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor


def trained_model(run: RunConfig, processor: ParGoProcessor) -> ParGoForConditionalGeneration:
    """Return the model of a run as training builds it, in evaluation mode. All weights that train
    have values that differ much from the initial ones.

    The values fit the run's precision, so that no export rounds them. Raises as assembly and
    freezing do.
    """
    model = assembly.load_model(run, processor, None)
    apply_freezing(model, run.train)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = moved(parameter.data)
    return model.eval()


def moved(values: torch.Tensor) -> torch.Tensor:
    """Return other values, of the size that trained weights have."""
    noise = torch.randn(values.shape)
    if values.ndim > 1:
        new = noise * values.shape[-1] ** -0.5
    else:
        new = values.float() + 0.1 * noise
    return new.to(values.dtype)


def write_checkpoint(run: RunConfig, model: ParGoForConditionalGeneration, folder: Path) -> Path:
    """Write the checkpoint that the run would save after its first step on one rank."""
    trained = {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
    (folder / FOLDER).mkdir(parents=True)
    pieces = []
    for name, values in trained.items():
        pieces.append(Fragment(name=name, start=0, kinds={WEIGHT: values.reshape(-1)}))
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
        model_config=assembly.model_description(model),
        frozen_sources=assembly.frozen_sources(run),
        versions=versions(),
        files={fragment_file(0): describe_file(file)},
        optimizer_step=1,
        parameters={name: list(values.shape) for name, values in trained.items()},
        frozen=frozen_hashes(model),
    ).write(folder)
    return folder
