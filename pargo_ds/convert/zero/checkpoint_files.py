"""The files of a training checkpoint, ours (both formats) or DeepSpeed's own, with the run that wrote them."""

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
    CheckpointError,
    Manifest,
    newest,
    read_manifest,
    verify_files,
)
from pargo_ds.checkpoint.version_1 import ENGINE
from pargo_ds.config import RunConfig, parse_config
from pargo_ds.convert.weights import Spec

THREADS = min(8, os.cpu_count() or 1)
PIECE = 1 << 21
"""Elements read at a time."""


class TrainedFiles(Protocol):
    """Where trained parameters lie."""

    def names(self) -> list[str]: ...

    def whole(self, kind: str, name: str) -> torch.Tensor: ...

    def pieces(self, kind: str, name: str, size: int) -> Iterator[torch.Tensor]: ...

    def read_other(self, name: str) -> torch.Tensor:
        """A weight or buffer that did not train."""
        ...


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """One checkpoint."""

    where: Path
    run: RunConfig
    shapes: Mapping[str, list[int]]
    """Of what trained. May name more: DeepSpeed without ZeRO does not say which parameters did."""
    open: Callable[[], TrainedFiles]
    check: Callable[[], None] = lambda: None
    """Wait until all files were compared with the hashes that the checkpoint has. Raises CheckpointError."""
    manifest: Manifest | None
    """None: DeepSpeed's own checkpoint."""
    step: int
    """Optimizer steps."""
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Weights and buffers that it holds though they may not have trained, by their names in the model."""
    tensors: Mapping[str, Spec] | None = None
    """All tensors of the model by their names in it, tied ones once, those that it does not hold included; None where
    it does not say."""

    @cached_property
    def trained(self) -> TrainedFiles:
        """The files themselves. Raises CheckpointError when they do not hold what they should."""
        try:
            return self.open()
        except CheckpointError:
            self.check()  # that a file was altered says more than what is odd in it
            raise

    def read(self, name: str) -> torch.Tensor:
        """One tensor of either kind, whole; fp32 where it trained. Raises CheckpointError."""
        if name in self.shapes:
            return self.trained.whole(WEIGHT, name)
        return self.trained.read_other(name)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The elements of one that trained, in order and in fp32, 1-D and at most PIECE at a time. Raises likewise."""
        yield from self.trained.pieces(WEIGHT, name, PIECE)


def open_checkpoint(path: Path, run: RunConfig | None = None) -> CheckpointFiles:
    """The checkpoint that `path` means: a step folder, a run's folder, or what DeepSpeed's save_checkpoint wrote.

    Its files are compared with their hashes in the background; `check` of the result waits for that.

    Args:
        run: the run file, for DeepSpeed's own checkpoints; ours bring theirs.

    Raises:
        CheckpointError: there is none, its manifest is damaged, or it needs a run file.
    """
    if is_deepspeed(path):
        if run is None:
            raise CheckpointError(
                f"{path} was written by DeepSpeed alone and does not say of which model; name the run file with --run"
            )
        return _deepspeed(path, None, run, None)
    folder = find_checkpoint(path)
    manifest = read_manifest(folder)
    verification = Verification(folder, manifest)
    run = parse_config(manifest.config, source=str(folder / MANIFEST))
    if manifest.format_version == 1:
        verification.wait()
        return _deepspeed(folder, ENGINE, run, manifest)
    shapes = manifest.parameters
    return CheckpointFiles(
        where=folder,
        run=run,
        shapes=shapes,
        open=lambda: FragmentFiles(folder, shapes),
        check=verification.wait,
        manifest=manifest,
        step=manifest.step,
        tensors=_all_tensors(manifest),
    )


def _all_tensors(manifest: Manifest) -> dict[str, Spec] | None:
    if manifest.frozen.keys() != manifest.frozen_shapes.keys():
        return None
    dtypes = {name: getattr(torch, described.split()[0]) for name, described in manifest.frozen.items()}
    trained = {name: Spec(tuple(shape), torch.float32) for name, shape in manifest.parameters.items()}
    return trained | {name: Spec(tuple(shape), dtypes[name]) for name, shape in manifest.frozen_shapes.items()}


def _deepspeed(folder: Path, tag: str | None, run: RunConfig, manifest: Manifest | None) -> CheckpointFiles:
    from pargo_ds.convert.deepspeed.files import DeepSpeedFiles

    files = DeepSpeedFiles(folder, tag)
    others = {name: spec.shape for name, spec in files.other_tensors.items()}
    if not files.knows_trained:
        others |= {name: tuple(shape) for name, shape in files.shapes.items()}
    trained = {name: Spec(tuple(shape), torch.float32) for name, shape in files.shapes.items()}
    return CheckpointFiles(
        where=folder,
        run=run,
        shapes=files.shapes,
        open=lambda: files,
        manifest=manifest,
        step=files.step,
        others=others,
        tensors=trained | files.other_tensors if files.knows_trained else None,
    )


def is_deepspeed(path: Path) -> bool:
    """Whether this is a folder that save_checkpoint wrote into, or one of its tags, and not ours."""
    if (path / MANIFEST).is_file():
        return False
    if any(path.glob("*_model_states.pt")):
        return True
    pointer = path / LATEST
    tag = pointer.read_bytes().decode(errors="replace").strip() if pointer.is_file() else ""
    inside = tag not in ("", ".", "..") and "/" not in tag and "\0" not in tag
    return inside and not (path / tag / MANIFEST).is_file() and any((path / tag).glob("*_model_states.pt"))


def is_checkpoint(path: Path) -> bool:
    """Whether this looks like something that open_checkpoint takes."""
    files = (path / MANIFEST, path / LATEST)
    return is_deepspeed(path) or any(file.is_file() for file in files) or (path / "checkpoints").is_dir()


def find_checkpoint(path: Path) -> Path:
    """The step folder that `path` means."""
    if (path / MANIFEST).is_file():
        return path
    for candidate in (path, path / "checkpoints"):
        folder = newest(candidate)
        if folder is not None:
            return folder
    raise CheckpointError(f"{path} is neither a checkpoint (no {MANIFEST}) nor a run folder with checkpoints/{LATEST}")


class Verification:
    """verify_files in threads of its own, which do not keep the process alive."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._errors: list[Exception] = []
        shares = max(1, min(THREADS, len(manifest.files)))

        def verify(share: int) -> None:
            try:
                verify_files(folder, manifest, share, shares)
            except (CheckpointError, OSError) as error:
                self._errors.append(error)

        self._threads = [threading.Thread(target=verify, args=(share,), daemon=True) for share in range(shares)]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Until all is compared. Raises CheckpointError naming a file that is missing, cut or altered."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
