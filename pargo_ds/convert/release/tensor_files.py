"""Read the tensors of files of other projects, in safetensors or torch.save's format, by name and
one at a time.

Only tensors are unpickled (`weights_only`), and torch's files are mapped into memory.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pargo_ds.checkpoint.safetensors_file import open_safetensors
from pargo_ds.convert.weights import progress
from pargo_ds.errors import CheckpointError

WRAPPER = "state_dict"
"""Key under which checkpoints of Lightning have the weights."""
_CHUNK = 8 << 20


class TensorFiles:
    """All tensors of `paths` by their names; `shapes` has their shapes, for which no data is read.

    Raises:
        CheckpointError: a file cannot be read or contains more than tensors, or two files have a
            tensor of the same name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, Any]] = {}
        for path in paths:
            tensors = _Safetensors(path) if path.suffix == ".safetensors" else load_pickled(path)
            for name, shape in _shapes(tensors).items():
                if name in self._places:
                    raise CheckpointError(f"{name} lies in both {self._places[name][0]} and {path}")
                self.shapes[name] = shape
                self._places[name] = path, tensors

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises CheckpointError naming file and tensor when it cannot be read.
        """
        path, tensors = self._places[name]
        try:
            return tensors[name]
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: {name} cannot be read ({error})") from error


def files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the weight files of a folder: all files that match the first pattern with a match.

    Raises CheckpointError when there are none.
    """
    for pattern in patterns:
        if paths := sorted(folder.glob(pattern)):
            return paths
    raise CheckpointError(f"{folder} holds no weights ({' or '.join(patterns)})")


class _Safetensors:
    """A safetensors file as a mapping that reads tensors on demand."""

    def __init__(self, path: Path) -> None:
        self._file = open_safetensors(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in self._file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
            self.shapes[name] = tuple(self._file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


def _shapes(tensors: Any) -> dict[str, tuple[int, ...]]:
    if isinstance(tensors, _Safetensors):
        return tensors.shapes
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a file of torch.save, which may be the value of `state_dict`. Its
    tensors are mapped into memory.

    Raises:
        CheckpointError: the file is missing, altered or in the format before torch 1.6; torch
            cannot load it without running its code; or an entry is no tensor.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file")
    check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        OSError,
        KeyError,
        AttributeError,
    ) as error:
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be loaded as tensors alone: {first} Nothing else is read from a file of unknown origin. If "
            "you trust it, save its state dict again with torch.save({name: tensor}) or as safetensors"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get(WRAPPER), Mapping):
        loaded = loaded[WRAPPER]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(
            f"{path} holds {type(loaded).__name__}, expected a state dict (name -> tensor)"
        )
    others = {name: value for name, value in loaded.items() if not torch.is_tensor(value)}
    strange = [f"{name} ({type(value).__name__})" for name, value in others.items()]
    if strange:
        raise CheckpointError(
            f"{path} holds entries that are no tensors: {', '.join(strange[:12])}; expected a state dict, bare or "
            f"under the key {WRAPPER}"
        )
    return {str(name): value for name, value in loaded.items()}


def check_archive(path: Path) -> None:
    """Compare the parts of torch.save's zip archive with their checksums, because torch.load does
    not.

    Raises CheckpointError naming the altered part. For a file that is no archive torch raises an
    error.
    """
    if not zipfile.is_zipfile(path):
        return
    part = "its directory"
    try:
        with zipfile.ZipFile(path) as archive, progress(path.name, path.stat().st_size) as advance:
            for entry in archive.infolist():
                if entry.CRC == 0:  # torch.serialization.set_crc32_options(False) was in force
                    continue
                part = entry.filename
                with archive.open(entry) as file:
                    while piece := file.read(_CHUNK):
                        advance(len(piece))
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        zlib.error,
    ) as error:
        raise CheckpointError(
            f"{path}: {part} was cut or altered ({error}); fetch the file again"
        ) from error
