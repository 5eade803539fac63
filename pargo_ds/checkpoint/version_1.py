"""Checkpoints of format 1: DeepSpeed's own files, readable by as many ranks of the same ZeRO stage as wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pargo_ds import distributed
from pargo_ds.checkpoint.manifest import CheckpointError, Manifest

ENGINE = "engine"


@contextmanager
def tensors_only() -> Iterator[None]:
    """torch.load inside builds tensors and two plain classes of DeepSpeed; DeepSpeed itself would allow anything."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals([ZeroStageEnum, LossScaler]):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def check_shape(manifest: Manifest, folder: Path, stage: int) -> None:
    """CheckpointError when the checkpoint was written by another number of ranks or another ZeRO stage."""
    if (manifest.world_size, manifest.zero_stage) != (distributed.world_size(), stage):
        raise CheckpointError(
            f"{folder} has the old format 1: written by {manifest.world_size} ranks with ZeRO stage "
            f"{manifest.zero_stage}, it resumes only so; this run has {distributed.world_size()} and stage {stage}. "
            "Continue it with the old numbers up to its next checkpoint, which any number of ranks can read"
        )


def load_engine(folder: Path, engine: Any) -> None:
    """Restore weights and optimizer through DeepSpeed. Collective."""
    # Frozen weights are not in the file, hence not strict; the manifest's fingerprint vouches for the names.
    with tensors_only():
        loaded, _ = engine.load_checkpoint(
            str(folder), tag=ENGINE, load_module_strict=False, load_lr_scheduler_states=False
        )
    if loaded is None:
        raise CheckpointError(f"DeepSpeed found no engine state in {folder}")


def read_trained(folder: Path) -> dict[str, torch.Tensor]:
    """All trained parameters, whole and in fp32."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with tensors_only():
        return get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=ENGINE, exclude_frozen_parameters=True)
