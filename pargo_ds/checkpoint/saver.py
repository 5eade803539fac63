"""Save a run: weights, optimizer, data position, random state and configuration.

All ranks write a checkpoint into a temporary folder, which is renamed when it is whole. Each rank
copies its part of the state into host memory (training waits for the copy), writes and hashes its
own file in the background, and then writes a mark. Rank 0 waits for all marks, writes the manifest,
renames the folder, updates `latest` and removes old checkpoints. The ranks communicate through
files, because collectives in the background would disturb those of training.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pargo_ds import distributed
from pargo_ds.checkpoint import engine_state
from pargo_ds.checkpoint.fragments import as_tensors, fragment_file
from pargo_ds.checkpoint.manifest import (
    FORMAT_VERSION,
    REMOVED,
    REPLACED,
    WRITING,
    Manifest,
    describe_file,
    point_latest,
    step_folder,
    steps_in,
    versions,
)
from pargo_ds.checkpoint.random_state import random_file, random_state
from pargo_ds.errors import CheckpointError
from pargo_ds.files.whole_file import write_whole

log = logging.getLogger("pargo_ds")
MARKS_TIMEOUT_S = 3600
"""A rank that has not written its file after this number of seconds is assumed to be dead."""


@dataclass(frozen=True, kw_only=True)
class RunMetadata:
    """The fields that are equal in all manifests of a run."""

    model_fingerprint: str
    zero_stage: int
    config: dict[str, Any]
    model_config: dict[str, Any]
    frozen_sources: dict[str, Any]
    frozen: dict[str, str]
    wandb_run: str | None = None


class Saver:
    """Writes the checkpoints of a run. Each rank has a Saver; all ranks call `save` and `wait`
    together.

    The newest `keep` checkpoints are kept, and those whose step is a multiple of `keep_every`.
    """

    def __init__(
        self,
        checkpoints: Path,
        facts: RunMetadata,
        *,
        keep: int,
        keep_every: int | None = None,
        background: bool = True,
    ) -> None:
        self.checkpoints, self.facts, self.background = checkpoints, facts, background
        self.keep, self.keep_every = keep, keep_every
        self.last: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._written, self._abandoned = threading.Event(), threading.Event()

    last: dict[str, float]
    """Figures of the last finished checkpoint: seconds for which training waited, seconds in all,
    and bytes that this rank wrote.
    """

    def save(
        self, engine: Any, *, step: int, data_state: dict[str, Any], totals: dict[str, float]
    ) -> None:
        """Save the checkpoint of `step`. Collective.

        It returns when the state of this rank is in host memory; without background, when the
        checkpoint is finished.
        """
        started = time.perf_counter()
        self.wait()
        aside = self.checkpoints / f"{WRITING}{step_folder(self.checkpoints, step).name}"

        def prepare() -> None:
            if distributed.is_main():
                shutil.rmtree(aside, ignore_errors=True)
                try:
                    aside.mkdir(parents=True)
                except OSError as error:
                    raise _not_written(aside, error) from error

        distributed.run_on_all_ranks(prepare)
        tensors, random = as_tensors(engine_state.snapshot(engine)), random_state()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            step=step,
            world_size=distributed.world_size(),
            data_state=data_state,
            versions=versions(),
            files={},
            parameters=engine_state.trained_shapes(engine),
            optimizer_step=engine_state.optimizer_step(engine),
            totals=dict(totals),  # a copy, because the trainer continues to add to its own
            **self.facts.__dict__,
        )
        stalled = time.perf_counter() - started

        def write() -> None:
            try:
                own = write_own(aside, tensors, random)
                self._written.set()
                if distributed.is_main():
                    self._publish(aside, manifest)
                self.last = {
                    "stalled_s": stalled,
                    "total_s": time.perf_counter() - started,
                    "own_bytes": float(own),
                }
            except OSError as error:
                self._error = _not_written(aside, error)
            except Exception as error:  # raised on every rank by `wait`
                self._error = error
            finally:
                self._written.set()

        self._written.clear()
        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()
        if not self.background:
            self.wait()

    def failed(self) -> bool:
        """Whether writing has failed on this rank; `wait` then raises the error."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is finished. Collective.

        If a rank could not write, it raises CheckpointError, and all other ranks raise
        OtherRankError.
        """
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        self._written.wait()
        try:
            distributed.run_on_all_ranks(self._raise_error)
        except Exception:
            self._abandoned.set()  # or rank 0 would wait for the mark of a rank that has failed
            raise
        thread.join()
        distributed.run_on_all_ranks(self._raise_error)
        log.info(
            "checkpoint: %s", ", ".join(f"{name} {value:.3f}" for name, value in self.last.items())
        )

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _publish(self, aside: Path, manifest: Manifest) -> None:
        files: dict[str, dict[str, Any]] = {}
        for rank in range(manifest.world_size):
            mark = aside / _mark(rank)
            self._wait_for(mark, rank)
            files |= json.loads(mark.read_text())
            mark.unlink()
        replace(manifest, files=files).write(aside)
        final, replaced = step_folder(self.checkpoints, manifest.step), None
        if final.exists():
            replaced = self.checkpoints / f"{REPLACED}{final.name}"
            final.rename(replaced)
        aside.rename(final)
        _flush_folder(self.checkpoints)
        point_latest(self.checkpoints, final)
        if replaced is not None:
            shutil.rmtree(replaced)
        self._remove_old(manifest.step)

    def _wait_for(self, mark: Path, rank: int) -> None:
        deadline = time.monotonic() + MARKS_TIMEOUT_S
        while not mark.is_file():
            if self._abandoned.wait(timeout=0.02):
                raise CheckpointError(
                    f"{mark.parent} was given up: another rank could not write its part"
                )
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"rank {rank} has not written its part of {mark.parent} in {MARKS_TIMEOUT_S} s"
                )

    def _remove_old(self, newest_step: int) -> None:
        """Remove checkpoints that need not be kept. Checkpoints with a later step belong to a run
        that was set back to an earlier step; they are not counted and not removed.
        """
        steps = [folder for folder in steps_in(self.checkpoints) if _step_of(folder) <= newest_step]
        for folder in steps[: -self.keep]:
            if not (self.keep_every and _step_of(folder) % self.keep_every == 0):
                # Renamed first, because a folder that is half removed must not look whole.
                going = folder.rename(self.checkpoints / f"{REMOVED}{folder.name}")
                shutil.rmtree(going)


def write_own(aside: Path, tensors: dict[str, Any], random: dict[str, Any]) -> int:
    """Write the files of this rank into `aside`, and then its mark. Return the number of bytes.

    Raises OSError and CheckpointError.
    """
    rank = distributed.rank()
    described = {}
    for name, content in ((fragment_file(rank), tensors), (random_file(rank), random)):
        if not content:
            continue
        path = aside / name
        path.parent.mkdir(exist_ok=True)
        try:
            save_file(content, path)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        except Exception as error:  # safetensors wraps the system's errors in its own
            raise _not_written(path, error) from error
        described[name] = describe_file(path)
    write_whole(aside / _mark(rank), json.dumps(described))
    return sum(facts["bytes"] for facts in described.values())


def _not_written(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} could not be written: {error}; the checkpoint before it stays. Make room or make the folder writable; "
        "the same command then continues"
    )


def _mark(rank: int) -> str:
    return f"written_{rank:05d}.json"


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step_of(folder: Path) -> int:
    return int(folder.name[5:])
