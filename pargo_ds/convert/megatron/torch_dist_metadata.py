"""Read the `.metadata` of a torch_dist checkpoint, and unpickle nothing but plain records.

torch writes `.metadata` as a pickle of dataclasses. Here every class that belongs there becomes an
inert record, so that no code of torch or Megatron runs while the file is read. Any other class or
function is refused.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from pargo_ds.errors import CheckpointError

METADATA = ".metadata"
RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint.planner": (
        "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData",
    ),
    "torch.serialization": ("_get_layout",),
    "megatron.core.dist_checkpointing.strategies.torch": ("MCoreMetadata", "MCoreSavePlan"),
    "megatron.core.dist_checkpointing.strategies.resharding": ("TensorReformulationMetadata",),
    "pathlib": ("PosixPath", "PurePosixPath", "Path"),
}  # fmt: skip
CONTAINERS = {
    ("collections", "OrderedDict"): dict,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
}


class _Record:
    """Replaces an object of the pickle; it keeps the arguments of the constructor, the fields or
    the state.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class _RecordUnpickler(pickle.Unpickler):
    """Builds records, dtypes and containers, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if name in RECORDS.get(module, ()):
            return type(name, (_Record,), {})
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} does not belong there")


@dataclass(frozen=True)
class StoredChunk:
    """A part (a box) of a tensor, and the place of its bytes in a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[StoredChunk, ...]


def read_metadata(folder: Path) -> tuple[dict[str, StoredTensor], set[str]]:
    """Return the tensors by key and the keys of pickled objects of a torch_dist checkpoint. No data
    is read.

    Raises:
        CheckpointError: `.metadata` is missing, damaged or contains something that does not belong
            there; a chunk lies outside its tensor or its file; or a file is missing or lies outside
            the folder.
    """
    path = folder / METADATA
    if not path.is_file():
        raise CheckpointError(f"{folder} is no torch_dist checkpoint: {METADATA} is missing")
    try:
        with path.open("rb") as file:
            metadata = _RecordUnpickler(file).load()
        places = {}
        for index, info in metadata.storage_data.items():
            places[index.fqn, getattr(index, "offset", None)] = _place(info)
        tensors, objects = {}, set()
        for key, entry in metadata.state_dict_metadata.items():
            kind = type(entry).__name__
            if kind == "TensorStorageMetadata":
                tensors[str(key)] = _tensor(str(key), entry, places)
            elif kind == "BytesStorageMetadata":
                objects.add(str(key))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it was altered"
        ) from error
    _check_files(folder, tensors)
    return tensors, objects


def _place(info: Any) -> tuple[str, int, int]:
    if getattr(info, "transform_descriptors", None):
        raise CheckpointError(
            f"{info.relative_path} is compressed ({info.transform_descriptors}); save it plainly"
        )
    start, length = int(info.offset), int(info.length)
    if start < 0 or length < 0:
        raise CheckpointError(f"{info.relative_path}: a chunk of {length} bytes at byte {start}")
    return str(info.relative_path), start, length


def _tensor(key: str, entry: Any, places: dict[Any, tuple[str, int, int]]) -> StoredTensor:
    shape, dtype = tuple(map(int, entry.size)), entry.properties.state[0]
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{key} has the type {dtype!r}, which is none of torch's")
    chunks = []
    for chunk in entry.chunks:
        offsets, sizes = tuple(map(int, chunk.offsets)), tuple(map(int, chunk.sizes))
        if not _is_inside(offsets, sizes, shape):
            raise CheckpointError(
                f"{key} {list(shape)} has a chunk at {offsets} of {sizes}, which lies outside"
            )
        if (key, offsets) not in places:
            raise CheckpointError(f"{key}: nothing says where its chunk at {offsets} is stored")
        chunks.append(StoredChunk(offsets, sizes, *places[key, offsets]))
    if sum(prod(chunk.sizes) for chunk in chunks) != prod(shape):
        raise CheckpointError(f"{key}: its chunks do not add up to its shape {list(shape)}")
    return StoredTensor(shape, dtype, tuple(chunks))


def _is_inside(offsets: tuple[int, ...], sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if not len(offsets) == len(sizes) == len(shape):
        return False
    sides = zip(offsets, sizes, shape, strict=True)
    return all(start >= 0 and start + size <= whole for start, size, whole in sides)


def _check_files(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    """Check that every file exists, is in the folder, and is long enough."""
    ends: dict[str, tuple[int, str]] = {}
    for key, tensor in tensors.items():
        for chunk in tensor.chunks:
            ends[chunk.file] = max(ends.get(chunk.file, (0, "")), (chunk.start + chunk.length, key))
    for name, (end, key) in sorted(ends.items()):
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise CheckpointError(
                f"{folder / METADATA}: file name {name!r} leaves the checkpoint's folder"
            )
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing (it holds {key})")
        if (folder / name).stat().st_size < end:
            raise CheckpointError(
                f"{folder}: {name} has {(folder / name).stat().st_size} bytes, {key} ends at byte {end}; it was cut"
            )
