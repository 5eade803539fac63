"""Read and write torch_dist checkpoints, the format of `megatron.core.dist_checkpointing`, without
Megatron.

The file `.metadata` gives the place of each chunk of each tensor in the `.distcp` files. A chunk is
a tensor in the format of torch.save. Chunks are read and written one at a time, so the memory is
bounded by the largest one.
"""

from __future__ import annotations

import copyreg
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from pargo_ds.convert.megatron.torch_dist_metadata import METADATA, StoredChunk, read_metadata
from pargo_ds.errors import CheckpointError

COMMON, BACKEND = "common.pt", "metadata.json"
BACKEND_FACTS = {
    "sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
    "common_backend_version": 1,
}  # fmt: skip
FILE_BYTES = 4_000_000_000


Box = list[tuple[int, int]]
"""(first, end) of a part of a tensor for each axis."""


@dataclass(frozen=True)
class Chunk:
    """A part (a box) of a tensor to write."""

    key: str
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


class TorchDistFolder:
    """The tensors of a checkpoint folder.

    The constructor and `read` raise CheckpointError naming the file and the tensor that cannot be
    read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors, self.objects = read_metadata(folder)

    def read(self, key: str, layer: int | None = None) -> torch.Tensor:
        """Return a whole tensor, or with `layer` the part at this index of its first axis."""
        shape = self.tensors[key].shape
        if layer is None:
            return self._read_box(key, (0,) * len(shape), shape)
        start = (layer,) + (0,) * (len(shape) - 1)
        return self._read_box(key, start, (1, *shape[1:]))[0]

    def _read_box(self, key: str, start: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
        """Return the part of a tensor that begins at `start`."""
        stored = self.tensors[key]
        result = torch.empty(sizes, dtype=stored.dtype)
        boxes: list[Box] = []
        for chunk in stored.chunks:
            box = _intersection(start, sizes, chunk.offsets, chunk.sizes)
            if any(low >= high for low, high in box):
                continue
            values = self._load(key, chunk, stored.dtype)
            if (chunk.offsets, chunk.sizes) == (start, sizes) and len(stored.chunks) == 1:
                return values
            result[_within(box, start)] = values[_within(box, chunk.offsets)]
            boxes.append(box)
        self._check_cover(key, boxes, result.numel())
        return result

    def _check_cover(self, key: str, boxes: list[Box], numel: int) -> None:
        overlap = any(_overlap(one, other) for one, other in combinations(boxes, 2))
        if overlap or sum(map(_volume, boxes)) != numel:
            raise CheckpointError(
                f"{self.folder / METADATA}: the chunks of {key} overlap or leave gaps"
            )

    def _load(self, key: str, chunk: StoredChunk, dtype: torch.dtype) -> torch.Tensor:
        path = self.folder / chunk.file
        try:
            with path.open("rb") as file:
                file.seek(chunk.start)
                content = io.BytesIO(file.read(chunk.length))
            damaged = zipfile.ZipFile(content).testzip()  # torch.load does not compare checksums
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} does not fit")
            content.seek(0)
            values = torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises almost anything
            raise CheckpointError(
                f"{path}: {key} at {chunk.offsets} cannot be read ({error})"
            ) from error
        if not isinstance(values, torch.Tensor) or (tuple(values.shape), values.dtype) != (
            chunk.sizes,
            dtype,
        ):
            raise CheckpointError(
                f"{path}: {key} at {chunk.offsets} is not {dtype} of shape {chunk.sizes}"
            )
        return values


def _overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share an element."""
    sides = zip(one, other, strict=True)
    return all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in sides)


def _volume(box: Box) -> int:
    """Return the number of elements of a box."""
    return prod(high - low for low, high in box)


def _intersection(
    start: tuple[int, ...],
    sizes: tuple[int, ...],
    offsets: tuple[int, ...],
    extents: tuple[int, ...],
) -> list[tuple[int, int]]:
    """Return (first, end) of the intersection of two boxes for each axis; it is empty where first
    >= end.
    """
    box = []
    for a, m, b, n in zip(start, sizes, offsets, extents, strict=True):
        box.append((max(a, b), min(a + m, b + n)))
    return box


def _within(box: Box, start: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the slices of a box in a tensor that begins at `start`."""
    sides = zip(box, start, strict=True)
    return tuple(slice(low - first, high - first) for (low, high), first in sides)


def write_torch_dist(
    folder: Path,
    chunks: Iterable[Chunk],
    objects: Iterable[str],
    content: dict[str, Any] | None,
    advance: Callable[[int], Any],
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write a checkpoint that `megatron.core.dist_checkpointing.load` reads at any parallelism.

    Args:
        objects: keys of ShardedObjects without content (`..._extra_state/shard_0_2`).
        content: what `dist_checkpointing.load_content_metadata` will return, if anything.
        advance: called with the bytes of each chunk.
    """
    metadata = Metadata({}, storage_data={}, storage_meta=StorageMeta(), version="1.0.0")
    with _Files(folder, file_bytes) as files:
        for chunk in chunks:
            values = chunk.read().contiguous()
            if (tuple(values.shape), values.dtype) != (chunk.sizes, chunk.dtype):
                raise CheckpointError(
                    f"{chunk.key}: read {values.dtype} {list(values.shape)}, announced {chunk}"
                )
            if _is_view(values):
                values = values.clone()
            index = MetadataIndex(chunk.key, chunk.offsets)
            metadata.storage_data[index] = files.write(values)
            _announce(metadata, chunk)
            advance(values.numel() * values.element_size())
        for key in objects:
            metadata.state_dict_metadata[key] = BytesStorageMetadata()
            metadata.storage_data[MetadataIndex(key)] = files.write([None])
    _pickle_metadata(metadata, folder / METADATA)
    common = {}
    if content:
        common["content_metadata"] = content
    torch.save(common, folder / COMMON)
    (folder / BACKEND).write_text(json.dumps(BACKEND_FACTS))


def _announce(metadata: Metadata, chunk: Chunk) -> None:
    properties = TensorProperties(dtype=chunk.dtype)
    stored = metadata.state_dict_metadata.setdefault(
        chunk.key, TensorStorageMetadata(properties, torch.Size(chunk.shape), [])
    )
    assert isinstance(stored, TensorStorageMetadata)
    stored.chunks.append(ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)))


def _is_view(values: torch.Tensor) -> bool:
    """Whether a tensor is a view of a larger storage, which torch.save would write as a whole."""
    return values.untyped_storage().nbytes() != values.numel() * values.element_size()


class _Files:
    """Writes values into `__0_0.distcp`, `__0_1.distcp` and so on; a new file begins after
    `file_bytes` bytes.
    """

    def __init__(self, folder: Path, file_bytes: int) -> None:
        self.folder, self.file_bytes, self.number = folder, file_bytes, 0
        self.file = self._next()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def _next(self) -> io.BufferedWriter:
        return (self.folder / f"__0_{self.number}.distcp").open("wb")

    def write(self, value: Any) -> _StorageInfo:
        if self.file.tell() >= self.file_bytes:
            self.file.close()
            self.number += 1
            self.file = self._next()
        start = self.file.tell()
        torch.save(value, self.file)
        return _StorageInfo(Path(self.file.name).name, start, self.file.tell() - start)


def _pickle_metadata(metadata: Metadata, path: Path) -> None:
    """Write `.metadata` as torch does, but with only those five properties of a tensor that older
    releases of torch can read.
    """
    with path.open("wb") as file:
        pickler = pickle.Pickler(file)
        pickler.dispatch_table = copyreg.dispatch_table | {TensorProperties: _reduce_properties}
        pickler.dump(metadata)


def _reduce_properties(properties: TensorProperties) -> tuple[Any, ...]:
    make = copyreg.__newobj__  # type: ignore[attr-defined]  # typeshed has not listed it
    return make, (TensorProperties,), properties.__getstate__()[:5]
