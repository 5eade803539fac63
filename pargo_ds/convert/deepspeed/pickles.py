"""Read files that DeepSpeed saved with torch.save, without DeepSpeed.

`torch.load(weights_only=True)` reads them. For every class that torch does not know, it gets an
inert stub, so that no code but that of torch runs. The tensors are mapped: their bytes are read
when they are used. torch.load does not compare the checksums of the archive, so this module does
it, for each tensor when it is first used.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pargo_ds.errors import CheckpointError

PACKAGES = {
    "deepspeed", "torch", "numpy", "transformers", "accelerate", "peft", "omegaconf",
    "argparse", "collections", "datetime", "enum", "functools", "pathlib", "types", "copyreg",
}  # fmt: skip
"""Modules whose classes become stubs. The optimizer, the schedule and client_state contain some."""
BUILTINS = {
    "bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str",
    "tuple",
}  # fmt: skip
"""Names of the module `builtins` that become stubs; torch.load itself reads a few others."""
Storages: TypeAlias = list[torch.UntypedStorage]
Records: TypeAlias = list[zipfile.ZipInfo]
_CHUNK = 8 << 20


class Record:
    """A stub for an object of the file. It keeps the arguments of the constructor and the
    fields.
    """

    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any, **keywords: Any) -> Record:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items()})


FILLED_LATER: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": lambda *_: {},
    "collections.deque": lambda *_: [],
}
"""Classes that must be plain dicts and lists, because torch.load adds items to no other type."""


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of a file. It is mapped and must not be changed."""

    file: StatesFile
    tensor: torch.Tensor

    @property
    def numel(self) -> int:
        return self.tensor.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def flat(self, start: int, stop: int) -> torch.Tensor:
        """Return the elements `start` ... `stop` of the flattened tensor: a view, or a copy if the
        tensor is not contiguous.

        Raises CheckpointError when the bytes of the tensor were altered.
        """
        self.file.check(self.tensor)
        return self.tensor.detach().reshape(-1)[start:stop]


class StatesFile:
    """One file of torch.save; `content` is the saved object.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, cut, altered, compressed or in torch's format before
            1.6, or it refers to classes or functions that do not belong there (none of them is
            run).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            records = self._check_all_but_tensors()
            self.content, storages = self._load()
        except CheckpointError:
            raise
        except (zipfile.BadZipFile, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); it was cut, or torch.save did not write it"
            ) from None
        except Exception as error:  # A damaged pickle may raise any exception.
            raise CheckpointError(f"{path}: its pickle is damaged ({_said(error)})") from error
        self._unchecked = self._pair(storages, records)

    def check(self, tensor: torch.Tensor) -> None:
        """Compare the bytes behind a tensor with their checksum when they are first used.

        Raises CheckpointError when they differ.
        """
        storage = tensor.untyped_storage()
        record = self._unchecked.get(storage.data_ptr())
        if record is None:
            return
        data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
        checksum = 0
        for start in range(0, len(data), _CHUNK):
            checksum = zlib.crc32(data[start : start + _CHUNK], checksum)
        if checksum != record.CRC:
            raise self._altered(record)
        self._unchecked.pop(storage.data_ptr(), None)

    def _check_all_but_tensors(self) -> Records:
        """Compare the checksums of the small records, and return the records of the tensors."""
        tensors = []
        with zipfile.ZipFile(self.path) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{self.path} is compressed; torch.save did not write it")
                if _name(record).startswith("data/"):
                    tensors.append(record)
                elif record.CRC:  # It is 0 where set_crc32_options(False) was in force.
                    self._check_small(archive, record)
        return tensors

    def _check_small(self, archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
        try:
            content = archive.read(record)
        except zipfile.BadZipFile:
            raise self._altered(record) from None
        if _name(record) == "byteorder" and content.decode() != sys.byteorder:
            # torch.load would swap the bytes of all tensors at once, in memory.
            raise CheckpointError(f"{self.path} was written on a {content.decode()}-endian machine")

    def _load(self) -> tuple[Any, Storages]:
        """Return the saved object and the storages of its tensors."""
        storages: Storages = []

        def keep(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
            storages.append(storage)
            return storage

        names = torch.serialization.get_unsafe_globals_in_checkpoint(self.path)
        self._refuse_foreign(names)
        stubs: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
        for name in names:
            stubs.append((FILLED_LATER.get(name) or _record_class(name), name))
        with torch.serialization.safe_globals(stubs):
            content = torch.load(
                self.path,
                mmap=True,
                weights_only=True,
                map_location=keep,  # type: ignore[arg-type]  # torch gives untyped storages
            )
        return content, storages

    def _refuse_foreign(self, names: list[str]) -> None:
        for name in sorted(names):
            module, _, short = name.rpartition(".")
            is_builtin = module == "builtins" and short in BUILTINS
            if not is_builtin and name.partition(".")[0] not in PACKAGES:
                raise CheckpointError(
                    f"{self.path} refers to {name}, which has no place in a DeepSpeed checkpoint "
                    "(nothing of it was run). Save again without it in client_state, or do not "
                    "trust this file"
                )

    def _pair(self, storages: Storages, records: Records) -> dict[int, zipfile.ZipInfo]:
        """Return the record of each storage by its address; records without a checksum are left
        out.

        torch.load maps the file once, so the addresses have the order of the records in the file.
        """
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}
        addresses = sorted(sizes)
        filled = [record for record in records if record.file_size]
        filled.sort(key=lambda record: record.header_offset)
        if [sizes[address] for address in addresses] != [record.file_size for record in filled]:
            raise CheckpointError(f"{self.path}: its tensors do not fit its bytes; it was altered")
        pairs = zip(addresses, filled, strict=True)
        return {address: record for address, record in pairs if record.CRC}

    def _altered(self, record: zipfile.ZipInfo) -> CheckpointError:
        return CheckpointError(f"{self.path}: {_name(record)} was altered (its checksum differs)")


def _record_class(name: str) -> type[Record]:
    """Return the stub class for a name; each name has its own class, which messages can show."""
    return type(name.rpartition(".")[2], (Record,), {})


def _name(record: zipfile.ZipInfo) -> str:
    """Return the name of a record without the folder that torch.save puts before it."""
    return record.filename.partition("/")[2]


def _said(error: Exception) -> str:
    """Return the message of torch.load without its advice, which is to read the file unsafely."""
    advice, _, rest = str(error).partition("\n\n")
    reason = rest.partition("\n\n")[0] or advice
    return f"{type(error).__name__}: {reason}"
