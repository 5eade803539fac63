"""The files of a training checkpoint of this project or of DeepSpeed alone, with their run file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from pargo_ds.checkpoint.fragments import WEIGHT, FragmentFiles
from pargo_ds.checkpoint.manifest import (
    LATEST,
    MANIFEST,
    Manifest,
    newest,
    read_manifest,
    verify_files,
)
from pargo_ds.config import RunConfig, parse_config
from pargo_ds.convert.deepspeed.files import DeepSpeedFiles
from pargo_ds.errors import CheckpointError

THREADS = min(8, os.cpu_count() or 1)
PIECE = 1 << 21
"""Number of elements that are read at a time."""


class TrainedFiles(Protocol):
    """A reader of trained parameters."""

    def names(self) -> list[str]: ...

    def whole(self, kind: str, name: str) -> torch.Tensor: ...

    def pieces(self, kind: str, name: str, size: int) -> Iterator[torch.Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """One training checkpoint."""

    where: Path
    run: RunConfig
    shapes: Mapping[str, list[int]]
    """Shapes of the trained parameters. For DeepSpeed without ZeRO these are all parameters,
    because its files do not say which of them trained.
    """
    open: Callable[[], TrainedFiles]
    check: Callable[[], None] = lambda: None
    """Waits until all files were compared with the hashes of the manifest; raises
    CheckpointError.
    """
    manifest: Manifest | None
    """The manifest; None for a checkpoint of DeepSpeed alone."""
    step: int
    """Number of optimizer steps."""
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of weights and buffers that the checkpoint also holds although they may be frozen, by
    their names in the model.
    """

    @cached_property
    def trained(self) -> TrainedFiles:
        """The reader of the files. Raises CheckpointError when they do not fit the manifest."""
        try:
            return self.open()
        except CheckpointError:
            self.check()  # an altered file is a better explanation than the fault in its contents
            raise

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, trained (in fp32) or not. Raises CheckpointError."""
        if name in self.shapes:
            return self.trained.whole(WEIGHT, name)
        files = self.trained
        assert isinstance(files, DeepSpeedFiles)  # our checkpoints hold trained tensors only
        return files.read_other(name)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the elements of a trained tensor in order, in fp32, as 1-D tensors of at most PIECE
        elements. Raises CheckpointError.
        """
        yield from self.trained.pieces(WEIGHT, name, PIECE)


def open_checkpoint(path: Path, run: RunConfig | None = None) -> CheckpointFiles:
    """Open a checkpoint: the folder of a step, the folder of a run (its newest checkpoint), or a
    folder that DeepSpeed's save_checkpoint wrote.

    The files are compared with their hashes in the background; the method `check` of the result
    waits for that.

    Args:
        run: the run file; only for checkpoints of DeepSpeed alone, because ours contain it.

    Raises:
        CheckpointError: there is no checkpoint, its manifest is damaged, or it needs a run file.
    """
    if is_deepspeed(path):
        if run is None:
            raise CheckpointError(
                f"{path} was written by DeepSpeed alone and does not say of which model; name the run file with --run"
            )
        return _deepspeed(path, run)
    folder = find_checkpoint(path)
    manifest = read_manifest(folder)
    verification = Verification(folder, manifest)
    run = parse_config(manifest.config, source=str(folder / MANIFEST))
    shapes = manifest.parameters
    return CheckpointFiles(
        where=folder,
        run=run,
        shapes=shapes,
        open=lambda: FragmentFiles(folder, shapes),
        check=verification.wait,
        manifest=manifest,
        step=manifest.step,
    )


def _deepspeed(folder: Path, run: RunConfig) -> CheckpointFiles:
    files = DeepSpeedFiles(folder)
    others = {name: spec.shape for name, spec in files.other_tensors.items()}
    if not files.knows_trained:
        others |= {name: tuple(shape) for name, shape in files.shapes.items()}
    return CheckpointFiles(
        where=folder,
        run=run,
        shapes=files.shapes,
        open=lambda: files,
        manifest=None,
        step=files.step,
        others=others,
    )


def is_deepspeed(path: Path) -> bool:
    """Whether `path` is a folder of DeepSpeed's save_checkpoint, or of one of its tags, and not a
    checkpoint of this project.
    """
    if (path / MANIFEST).is_file():
        return False
    if any(path.glob("*_model_states.pt")):
        return True
    pointer = path / LATEST
    tag = ""
    if pointer.is_file():
        tag = pointer.read_bytes().decode(errors="replace").strip()
    inside = tag not in ("", ".", "..") and "/" not in tag and "\0" not in tag
    return (
        inside
        and not (path / tag / MANIFEST).is_file()
        and any((path / tag).glob("*_model_states.pt"))
    )


def is_checkpoint(path: Path) -> bool:
    """Whether `path` looks like a folder that open_checkpoint accepts."""
    files = (path / MANIFEST, path / LATEST)
    return (
        is_deepspeed(path)
        or any(file.is_file() for file in files)
        or (path / "checkpoints").is_dir()
    )


def find_checkpoint(path: Path) -> Path:
    """Return the folder of a step: `path` itself, or the newest one of a run's folder."""
    if (path / MANIFEST).is_file():
        return path
    for candidate in (path, path / "checkpoints"):
        folder = newest(candidate)
        if folder is not None:
            return folder
    raise CheckpointError(
        f"{path} is neither a checkpoint (no {MANIFEST}) nor a run folder with checkpoints/{LATEST}"
    )


class Verification:
    """Runs verify_files in daemon threads, which do not keep the process alive."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._errors: list[Exception] = []
        shares = max(1, min(THREADS, len(manifest.files)))

        def verify(share: int) -> None:
            try:
                verify_files(folder, manifest, share, shares)
            except (CheckpointError, OSError) as error:
                self._errors.append(error)

        self._threads: list[threading.Thread] = []
        for share in range(shares):
            thread = threading.Thread(target=verify, args=(share,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self) -> None:
        """Wait until all files are compared.

        Raises CheckpointError naming a file that is missing, cut or altered.
        """
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
