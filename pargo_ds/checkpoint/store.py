"""Save and resume a run: engine, data position, RNG and configuration together.

Inside lie DeepSpeed's own files (`engine/`), without the frozen weights: those come from where the run got them. A
checkpoint resumes on the number of ranks that wrote it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pargo_ds import distributed
from pargo_ds.checkpoint.manifest import (
    FORMAT_VERSION,
    CheckpointError,
    Manifest,
    describe_files,
    newest,
    point_latest,
    read_manifest,
    step_folder,
)

log = logging.getLogger("pargo_ds")
ENGINE = "engine"
PACKAGES = ("torch", "deepspeed", "transformers", "mosaicml-streaming", "peft", "timm")


def versions() -> dict[str, str]:
    """Versions of the packages that shape a run."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def rng_state() -> dict[str, torch.Tensor]:
    """Random state of this rank, as tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save(
    checkpoints: Path,
    engine: Any,
    *,
    step: int,
    zero_stage: int,
    data_state: dict[str, Any],
    model_fingerprint: str,
    config: dict[str, Any],
    frozen_sources: dict[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `step` on all ranks; returns its folder. Collective: every rank must call it.

    Written into a folder aside, hashed, renamed; `latest` moves last, then older ones beyond `keep` are removed.
    """
    final = step_folder(checkpoints, step)
    aside = checkpoints / f".writing_{final.name}"

    def prepare() -> None:
        if distributed.is_main():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)

    distributed.together(prepare)
    engine.save_checkpoint(str(aside), tag=ENGINE, save_latest=False, exclude_frozen_parameters=True)
    distributed.together(lambda: save_file(rng_state(), aside / f"rng_{distributed.rank():05d}.safetensors"))

    def publish() -> None:
        if not distributed.is_main():
            return
        for script in aside.glob("*.py"):  # DeepSpeed copies its converters beside each checkpoint; ours is a tool
            script.unlink()
        Manifest(
            format_version=FORMAT_VERSION,
            step=step,
            world_size=distributed.world_size(),
            zero_stage=zero_stage,
            model_fingerprint=model_fingerprint,
            data_state=data_state,
            config=config,
            frozen_sources=frozen_sources,
            versions=versions(),
            files=describe_files(aside),
        ).write(aside)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        point_latest(checkpoints, final)
        for old in sorted(checkpoints.glob("step_*"))[:-keep]:
            shutil.rmtree(old)

    distributed.together(publish)
    return final


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


def find_resume(checkpoints: Path) -> tuple[Path, Manifest] | None:
    """Newest checkpoint and its manifest (files verified by rank 0), or None; the same answer on every rank."""

    def look() -> tuple[Path, Manifest] | None:
        folder = newest(checkpoints)
        return None if folder is None else (folder, read_manifest(folder, verify=distributed.is_main()))

    return distributed.together(look)


def check_resumable(manifest: Manifest, folder: Path, *, world_size: int, stage: int, fingerprint: str) -> None:
    """CheckpointError when the checkpoint does not belong to this model, ZeRO stage or number of ranks."""
    if manifest.model_fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder} was written by another model (configuration, trained parts or their shapes differ from this "
            "run file); give this run another name, or restore the run file saved beside the checkpoint"
        )
    if manifest.world_size != world_size:
        raise CheckpointError(
            f"{folder} was written by {manifest.world_size} ranks, this run has {world_size}; "
            f"start it with {manifest.world_size} ranks"
        )
    if manifest.zero_stage != stage:
        raise CheckpointError(
            f"{folder} was written with ZeRO stage {manifest.zero_stage}, this run has stage {stage}; "
            "use the deepspeed JSON of that stage"
        )


def load(folder: Path, engine: Any) -> None:
    """Restore weights, optimizer and RNG of this rank from `folder` (already verified). Collective."""
    # Frozen weights are not in the file, hence not strict; the manifest's fingerprint vouches for the names.
    with tensors_only():
        loaded, _ = engine.load_checkpoint(
            str(folder), tag=ENGINE, load_module_strict=False, load_lr_scheduler_states=False
        )
    if loaded is None:
        raise CheckpointError(f"DeepSpeed found no engine state in {folder}")
    distributed.together(lambda: set_rng_state(load_file(folder / f"rng_{distributed.rank():05d}.safetensors")))
