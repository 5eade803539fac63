"""torch_dist checkpoints, the format of `megatron.core.dist_checkpointing`, read and written without Megatron.

`.metadata` says where each chunk of each tensor lies in the `.distcp` files; a chunk is a tensor in torch.save's
format. Chunks are written one at a time and read one at a time, so memory is bounded by the largest.
"""

from __future__ import annotations

import copyreg
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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

from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.convert.megatron.torch_dist_metadata import METADATA, StoredChunk, read_metadata

COMMON, BACKEND = "common.pt", "metadata.json"
BACKEND_FACTS = {
    "sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
    "common_backend_version": 1,
}  # fmt: skip
FILE_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor that is to be written."""

    key: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


class TorchDistFolder:
    """The tensors of a checkpoint folder.

    Raises CheckpointError, here and in `read`, naming the file and the tensor that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors, self.objects = read_metadata(folder)

    def read(self, key: str, layer: int | None = None) -> torch.Tensor:
        """A whole tensor, or with `layer` only that index of its first axis (which goes away)."""
        stored = self.tensors[key]
        first = () if layer is None else (layer,)
        start = first + (0,) * (len(stored.shape) - len(first))
        sizes = (1,) * len(first) + stored.shape[len(first) :]
        result = torch.empty(sizes, dtype=stored.dtype)
        boxes: list[list[tuple[int, int]]] = []
        for chunk in stored.chunks:
            box = _intersection(start, sizes, chunk.offsets, chunk.sizes)
            if any(low >= high for low, high in box):
                continue
            values = self._load(key, chunk, stored.dtype)
            if (chunk.offsets, chunk.sizes) == (start, sizes) and len(stored.chunks) == 1:
                return values if layer is None else values[0]
            inner = tuple(slice(low - o, high - o) for (low, high), o in zip(box, chunk.offsets, strict=True))
            outer = tuple(slice(low - o, high - o) for (low, high), o in zip(box, start, strict=True))
            result[outer] = values[inner]
            boxes.append(box)
        self._check_cover(key, boxes, result.numel())
        return result if layer is None else result[0]

    def _check_cover(self, key: str, boxes: list[list[tuple[int, int]]], numel: int) -> None:
        overlap = any(
            all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(one, other, strict=True))
            for place, one in enumerate(boxes)
            for other in boxes[:place]
        )
        if overlap or sum(prod(high - low for low, high in box) for box in boxes) != numel:
            raise CheckpointError(f"{self.folder / METADATA}: the chunks of {key} overlap or leave gaps")

    def _load(self, key: str, chunk: StoredChunk, dtype: torch.dtype) -> torch.Tensor:
        path = self.folder / chunk.file
        try:
            with path.open("rb") as file:
                file.seek(chunk.start)
                content = io.BytesIO(file.read(chunk.length))
            damaged = zipfile.ZipFile(content).testzip()  # torch.load does not compare the checksums
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} does not fit")
            content.seek(0)
            values = torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises almost anything
            raise CheckpointError(f"{path}: {key} at {chunk.offsets} cannot be read ({error})") from error
        if not isinstance(values, torch.Tensor) or (tuple(values.shape), values.dtype) != (chunk.sizes, dtype):
            raise CheckpointError(f"{path}: {key} at {chunk.offsets} is not {dtype} of shape {chunk.sizes}")
        return values


def _intersection(
    start: tuple[int, ...], sizes: tuple[int, ...], offsets: tuple[int, ...], extents: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Per axis (first, end) of the box that two boxes share; empty where first >= end."""
    return [(max(a, b), min(a + m, b + n)) for a, m, b, n in zip(start, sizes, offsets, extents, strict=True)]


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
                raise CheckpointError(f"{chunk.key}: read {values.dtype} {list(values.shape)}, announced {chunk}")
            index = MetadataIndex(chunk.key, chunk.offsets)
            metadata.storage_data[index] = files.write(values.clone() if _is_view(values) else values)
            _announce(metadata, chunk)
            advance(values.numel() * values.element_size())
        for key in objects:
            metadata.state_dict_metadata[key] = BytesStorageMetadata()
            metadata.storage_data[MetadataIndex(key)] = files.write([None])
    _pickle_metadata(metadata, folder / METADATA)
    torch.save({"content_metadata": content} if content else {}, folder / COMMON)
    (folder / BACKEND).write_text(json.dumps(BACKEND_FACTS))


def _announce(metadata: Metadata, chunk: Chunk) -> None:
    properties = TensorProperties(dtype=chunk.dtype)
    stored = metadata.state_dict_metadata.setdefault(
        chunk.key, TensorStorageMetadata(properties, torch.Size(chunk.shape), [])
    )
    stored.chunks.append(ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)))


def _is_view(values: torch.Tensor) -> bool:
    """torch.save writes a view's whole storage."""
    return values.untyped_storage().nbytes() != values.numel() * values.element_size()


class _Files:
    """Writes what it is given into `__0_0.distcp`, `__0_1.distcp` and so on, a new file after `file_bytes`."""

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
    """As torch does, but with only those five properties of a tensor that older releases of torch read, too."""
    with path.open("wb") as file:
        pickler = pickle.Pickler(file)
        pickler.dispatch_table = copyreg.dispatch_table | {TensorProperties: _reduce_properties}
        pickler.dump(metadata)


def _reduce_properties(properties: TensorProperties) -> tuple[Any, ...]:
    return copyreg.__newobj__, (TensorProperties,), properties.__getstate__()[:5]
