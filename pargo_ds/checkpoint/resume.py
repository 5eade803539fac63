"""Resume a run: find its newest whole checkpoint, and restore weights, optimizer and random state.

What a killed save left behind is put right first. Damage is found by the hashes of the manifest,
and the checkpoint before a damaged one is taken.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pargo_ds import distributed
from pargo_ds.checkpoint import engine_state
from pargo_ds.checkpoint.fragments import FragmentFiles
from pargo_ds.checkpoint.manifest import (
    DAMAGED,
    REMOVED,
    REPLACED,
    WRITING,
    Manifest,
    candidates,
    read_manifest,
    verify_files,
)
from pargo_ds.checkpoint.random_state import random_file, seed_new_rank, set_random_state
from pargo_ds.errors import CheckpointError

log = logging.getLogger("pargo_ds")


def clean_up(checkpoints: Path) -> list[str]:
    """Remove the unfinished folders of a killed run, and rename a folder back that was to be
    replaced. Return one sentence for each folder.

    Rank 0 calls this before any checkpoint is read.
    """
    done = []
    for path in sorted(checkpoints.glob(f"{REPLACED}step_*")):
        original = checkpoints / path.name.removeprefix(REPLACED)
        if original.exists() or not (path / "manifest.json").is_file():
            shutil.rmtree(path)
            done.append(f"removed {path.name}, which had been given up")
        else:
            path.rename(original)
            done.append(
                f"gave {original.name} its name back: a save that should have replaced it was cut off"
            )
    for path in sorted(checkpoints.glob(f"{REMOVED}*")):
        shutil.rmtree(path)
        done.append(f"removed {path.name}, an old checkpoint that was on its way out")
    for path in sorted(checkpoints.glob(f"{WRITING}*")):
        shutil.rmtree(path)
        done.append(f"removed {path.name}, a save that was cut off")
    return done


def find_resume(checkpoints: Path) -> tuple[Path, Manifest] | None:
    """Return the newest whole checkpoint and its manifest, or None if there is no checkpoint.
    Collective: the ranks share the hashing.

    A damaged checkpoint is renamed to `damaged_step_...` with a warning, and the checkpoint before
    it is tried. Raises CheckpointError when there are checkpoints but none is whole.
    """
    done = distributed.run_on_all_ranks(
        lambda: clean_up(checkpoints) if distributed.is_main() else []
    )
    for sentence in done:
        log.warning("checkpoints: %s", sentence)
    folders, said = distributed.broadcast_object(candidates(checkpoints))
    if said:
        log.warning("checkpoints: %s", said)
    problems = []
    for folder in folders:
        problem = _damage(folder)
        if problem is None:
            return folder, read_manifest(folder)
        problems.append(problem)
        log.warning("damaged checkpoint, trying the one before it: %s", problem)
        if distributed.is_main():
            shutil.rmtree(checkpoints / f"{DAMAGED}{folder.name}", ignore_errors=True)
            folder.rename(checkpoints / f"{DAMAGED}{folder.name}")
        distributed.barrier()
    if problems:
        raise CheckpointError(
            f"{checkpoints} holds no checkpoint that is whole: {'; '.join(problems)}. Remove the folder to begin anew"
        )
    return None


def _damage(folder: Path) -> str | None:
    """Describe what is wrong with a checkpoint; None if it is whole. Collective."""
    try:
        manifest = read_manifest(folder)
        verify_files(folder, manifest, distributed.rank(), distributed.world_size())
        problem = None
    except (CheckpointError, OSError) as error:
        problem = str(error)
    return next((found for found in distributed.gather_objects(problem) if found is not None), None)


def check_resumable(manifest: Manifest, folder: Path, *, fingerprint: str) -> None:
    """Raise CheckpointError when the checkpoint does not belong to this model."""
    if manifest.model_fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder} was written by another model (configuration, trained parts or their shapes differ from this "
            "run file); give this run another name, or restore the run file saved beside the checkpoint"
        )


def load_checkpoint(folder: Path, manifest: Manifest, engine: Any) -> None:
    """Restore weights, optimizer and random state of this rank from `folder`, which must have been
    verified. Collective.
    """
    files = distributed.run_on_all_ranks(lambda: FragmentFiles(folder, manifest.parameters))
    engine_state.restore(engine, files, manifest.optimizer_step)
    name = random_file(distributed.rank())

    def restore_random() -> None:
        if (folder / name).is_file():
            set_random_state(load_file(folder / name))
        else:
            seed_new_rank(int(manifest.config["seed"]), manifest.step, distributed.rank())

    distributed.run_on_all_ranks(restore_random)
