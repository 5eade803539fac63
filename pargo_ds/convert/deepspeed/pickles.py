"""The files that DeepSpeed saves with torch.save, read without DeepSpeed and without running anything of them.

Such a file is an uncompressed zip archive: `data.pkl` says what there is, `data/0`, `data/1`, ... are the tensors'
bytes. The pickle is read into plain containers and inert records; a tensor becomes a note of where its values lie, and
they are mapped into memory when they are asked for. The archive's checksums are compared the first time a storage is
read.
Layout: torch.serialization (`_save`, `_load`) and torch/_utils.py (`_rebuild_tensor_v2`) of torch 2.11 to 2.15.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from pargo_ds.checkpoint.manifest import CheckpointError

PACKAGES = {
    "deepspeed", "torch", "numpy", "transformers", "accelerate", "peft", "omegaconf",
    "argparse", "collections", "datetime", "enum", "functools", "pathlib", "types", "_codecs", "copyreg", "copy_reg",
}  # fmt: skip
"""Whose classes are read as inert records; the optimizer, the schedule and client_state hold some."""
BUILTINS = {"set", "frozenset", "bytearray", "complex", "slice", "range", "xrange", "object"}
"""Of the module `builtins`, which torch.save's pickles call `__builtin__`."""
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
_LOCAL_HEADER = 30
_CHUNK = 8 << 20


class Record:
    """What stands for an object of the pickle: the arguments that it was made with, and its fields."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Record:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        """Mappings' items are not kept."""

    def append(self, item: Any) -> None:
        """Lists' items are not kept."""


@dataclass(frozen=True)
class _Storage:
    archive: StatesFile
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class PickledTensor:
    """A tensor of a file, not yet read. `offset` and `stride` count elements of its storage."""

    archive: StatesFile
    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def values(self) -> torch.Tensor:
        """The tensor in its shape: a view of the mapped file, to be copied and not to be changed.

        Raises CheckpointError when its storage is absent, too short or altered.
        """
        if self.numel == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        storage = self.archive.storage(self.key, self.dtype)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if min(self.offset, *self.stride, 0) < 0 or last >= storage.numel():
            raise CheckpointError(
                f"{self.archive.path}: a tensor of shape {list(self.shape)} reaches element {last} of storage "
                f"{self.key}, which has {storage.numel()}; the file was altered"
            )
        return storage.as_strided(self.shape, self.stride, storage.storage_offset() + self.offset)

    def flat(self, start: int, stop: int) -> torch.Tensor:
        """Elements `start` ... `stop` of the flattened tensor, likewise a view (a copy where it is not contiguous)."""
        return self.values().reshape(-1)[start:stop]


class StatesFile:
    """One file of torch.save.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is absent, cut, compressed, of torch's format before 1.6, or its pickle refers to classes or
            functions that have no place in it (none is run).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: torch.Tensor | None = None
        self._compared: set[str] = set()
        self._comparing = threading.Lock()
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); it was cut, or torch.save did not write it"
            ) from None
        self._records = {entry.filename.partition("/")[2]: entry for entry in entries}
        order = bytes(self._record("byteorder").numpy()).decode() if "byteorder" in self._records else "little"
        if order != sys.byteorder:
            raise CheckpointError(f"{path} was written on a {order}-endian machine; convert it on such a one")
        self.content = self._unpickle(self._record("data.pkl").numpy().tobytes())

    def _unpickle(self, body: bytes) -> Any:
        try:
            return _InertUnpickler(io.BytesIO(body), self).load()
        except _ForeignName as error:
            raise CheckpointError(
                f"{self.path} refers to {error}, which has no place in a DeepSpeed checkpoint (nothing of it was run). "
                "Save again without it in client_state, or do not trust this file"
            ) from None
        except RecursionError:
            raise CheckpointError(f"{self.path}: its pickle is nested too deeply") from None
        except Exception as error:  # a damaged pickle fails in any way
            raise CheckpointError(f"{self.path}: its pickle is damaged ({type(error).__name__}: {error})") from error

    def _record(self, name: str) -> torch.Tensor:
        """Bytes of one part of the archive, mapped and compared with their checksum once."""
        entry = self._records.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path}: {name} is missing in it; the file was altered")
        data = self._mapped()
        head = data[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
        if entry.compress_type != zipfile.ZIP_STORED or bytes(head[:4].numpy()) != b"PK\3\4":
            raise CheckpointError(
                f"{self.path}: {name} does not lie there as torch.save writes it; the file was altered"
            )
        name_length, extra_length = (int.from_bytes(bytes(head[at : at + 2].numpy()), "little") for at in (26, 28))
        start = entry.header_offset + _LOCAL_HEADER + name_length + extra_length
        found = data[start : start + entry.file_size]
        if found.numel() != entry.file_size:
            raise CheckpointError(f"{self.path}: {name} ends beyond the file, which was cut")
        with self._comparing:
            if name not in self._compared:
                self._compare(name, found, entry.CRC)
        return found

    def _compare(self, name: str, data: torch.Tensor, expected: int) -> None:
        # torch writes 0 where torch.serialization.set_crc32_options(False) was in force.
        crc, view = 0, memoryview(data.numpy())
        for start in range(0, len(view), _CHUNK) if expected else ():
            crc = zlib.crc32(view[start : start + _CHUNK], crc)
        if crc != expected:
            raise CheckpointError(f"{self.path}: {name} was altered (its checksum differs)")
        self._compared.add(name)

    def _mapped(self) -> torch.Tensor:
        if self._bytes is None:
            size = self.path.stat().st_size
            # Pages are private to this process, read from the file when touched, and need no open descriptor.
            self._bytes = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8)
        return self._bytes

    def storage(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        """A whole storage, 1-D, mapped. Raises CheckpointError when it is absent or altered."""
        data = self._record(f"data/{key}")
        data = data[: data.numel() // dtype.itemsize * dtype.itemsize]
        aligned = data.storage_offset() % dtype.itemsize == 0
        return (data if aligned else data.clone()).view(dtype)


class _ForeignName(Exception):
    """A class or function that does not belong into the file."""


class _InertUnpickler(pickle.Unpickler):
    """Builds containers, notes of tensors, and records; refuses what is outside PACKAGES."""

    def __init__(self, file: io.BytesIO, archive: StatesFile) -> None:
        super().__init__(file)
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _REBUILT:
            return _REBUILT[module, name]
        if module in ("torch", "torch.storage"):
            if name in STORAGES:
                return STORAGES[name]
            if isinstance(found := vars(torch).get(name), torch.dtype):
                return found
        if module.partition(".")[0] in PACKAGES or (module in ("builtins", "__builtin__") and name in BUILTINS):
            return type(name.rpartition(".")[2], (Record,), {"source": f"{module}.{name}"})
        raise _ForeignName(f"{module}.{name}")

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key, _, _ = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"storage {saved!r} of an unknown kind")
        return _Storage(self.archive, str(key), dtype)


def _tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    # _rebuild_tensor_v3 has the dtype after requires_grad and the hooks; v2 has optional metadata there.
    dtype = next((given for given in rest if isinstance(given, torch.dtype)), storage.dtype)
    return PickledTensor(storage.archive, storage.key, dtype, offset, tuple(shape), tuple(stride))


def _parameter(data: PickledTensor, *rest: Any) -> PickledTensor:
    return data


def _tensor_with_attributes(make: Any, kind: Any, arguments: tuple, state: Any) -> Any:
    return make(*arguments) if make in (_tensor, _parameter) else Record(make, kind, arguments)


_REBUILT = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_with_attributes,
}
