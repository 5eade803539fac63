"""The files of single shards: how they are fetched, compared with the index, and read.

`streaming` (mosaicml-streaming) implements the format. It is imported inside the functions, because
its import takes seconds.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pargo_ds.data.shards.folder import ShardFolder, download
from pargo_ds.data.shards.s3 import never
from pargo_ds.errors import ShardError

if TYPE_CHECKING:
    from streaming.base.format import Reader

log = logging.getLogger("pargo_ds")
HASH = "xxh64"


class Shard:
    """One shard: its entry in the index, and the file from which its rows are read.

    `remote` is the folder from which the file is fetched into `folder`. None means that the file in
    `folder` is the only copy; it is never written or deleted.
    """

    def __init__(self, info: dict[str, Any], folder: Path, remote: str | None) -> None:
        self.info, self.folder, self.remote = info, folder, remote
        self.path = folder / info["raw_data"]["basename"]
        """The unpacked file, from which rows are read."""
        self._stored = info["zip_data"] or info["raw_data"]
        self.name = f"{remote or folder}/{self._stored['basename']}"
        """Path or address of the stored file, which may be packed; for messages."""

    def __len__(self) -> int:
        return self.info["samples"]

    @property
    def most_bytes(self) -> int:
        """Bytes on the disk that fetching takes: for a moment the packed and the unpacked file."""
        return self.info["raw_data"]["bytes"] + (self.info["zip_data"] or {"bytes": 0})["bytes"]

    def row(self, place: int) -> dict[str, Any]:
        """Return a row as it is stored (see `Sample.from_mds`); the file must have been verified.

        Raises FileNotFoundError when the file was deleted, and ShardError when the row cannot be
        read.
        """
        try:
            return self._rows[place]
        except FileNotFoundError:
            raise
        except Exception as error:  # a file without a hash in the index may have any fault
            reason = f"row {place} cannot be read ({type(error).__name__}: {error})"
            raise ShardError(f"{self.path} is damaged: {reason}; write it anew") from error

    @functools.cached_property
    def _rows(self) -> Reader:
        from streaming.base.format import reader_from_json

        return reader_from_json(str(self.folder), None, self.info)

    def verify(self) -> bool:
        """Return whether the file exists and has the size and the hash of the index.

        A damaged file that can be fetched again is deleted. Raises ShardError when the only copy is
        missing or damaged, and OSError when the file cannot be read.
        """
        if not self.path.is_file():
            if self.remote is None:
                raise self._error("missing, though index.json names it")
            return False
        fault = _fault(self.path, self.info["raw_data"])
        if fault is None:
            return True
        if self.remote is None:
            raise self._error(f"damaged: {fault}")
        message = "%s in the cache is damaged: %s; it is fetched again from %s"
        log.warning(message, self.path, fault, self.remote)
        self.path.unlink()
        return False

    def fetch(self, stop: Callable[[], bool] = never) -> None:
        """Copy the file from the store and unpack it. The file appears when it has been checked.

        Fetching is given up when `stop` returns True.

        Raises:
            ShardError: the store does not have the shard, or its file does not fit the index at the
                second try either.
            StoreError: the store does not answer, or `stop` returned True.
        """
        who = f"{os.getpid()}-{threading.get_ident()}"
        arrived = self.path.with_name(f"{self.path.name}.{who}.checked.part")
        try:
            for last_try in (False, True):
                if not download(self.name, arrived, stop=stop):
                    raise self._error("missing, though index.json names it")
                fault = _fault(arrived, self._stored) or self._unpack(arrived)
                if fault is None:
                    arrived.replace(self.path)
                    return
                if not last_try:
                    log.warning("%s came damaged: %s; it is fetched once more", self.name, fault)
            raise self._error(f"damaged: {fault}")
        finally:
            arrived.unlink(missing_ok=True)

    def _error(self, fault: str) -> ShardError:
        """The error for a fault of the stored file."""
        remedy = "copy or write it anew"
        if self.remote is not None:
            remedy = "upload or write it anew, then start again"
        return ShardError(f"{self.name} is {fault}; {remedy}")

    def _unpack(self, path: Path) -> str | None:
        """Replace a packed file by its contents. Return what is wrong with it, as `_fault` does."""
        from streaming.base.compression import decompress

        if not self.info["zip_data"]:
            return None
        try:
            path.write_bytes(decompress(self.info["compression"], path.read_bytes()))
        except OSError:
            raise
        except Exception as error:  # each of streaming's packers has its own errors
            return f"it cannot be unpacked ({type(error).__name__}: {error})"
        return _fault(path, self.info["raw_data"])


def _fault(path: Path, info: dict[str, Any]) -> str | None:
    """Describe how a file differs from its entry in the index; None if it does not."""
    from streaming.base.hashing import get_hash, is_hash

    size = path.stat().st_size
    if size != info["bytes"]:
        return f"it has {size} bytes where index.json says {info['bytes']}"
    hashes = info["hashes"]
    algorithm = HASH
    if HASH not in hashes:
        algorithm = next(filter(is_hash, sorted(hashes)), "")
    if algorithm and get_hash(algorithm, path.read_bytes()) != hashes[algorithm]:
        return f"its {algorithm} hash is not the one in index.json"
    return None


def shards_of(folder: ShardFolder) -> list[Shard]:
    """Return all shards of a folder, in the order of the index."""
    return [Shard(info, folder.local, folder.remote) for info in folder.shards]


@contextmanager
def opened_shard(folder: ShardFolder, number: int) -> Iterator[Shard]:
    """Yield a verified shard by its number in the index, without use of the cache.

    A shard of a store is in a temporary folder while it is open. Raises ShardError when the shard
    is missing or damaged, and StoreError when the store fails.
    """
    info = folder.shards[number]
    if folder.remote is None:
        shard = Shard(info, folder.local, None)
        shard.verify()
        yield shard
        return
    with tempfile.TemporaryDirectory(prefix="pargo_ds_shard_") as aside:
        shard = Shard(info, Path(aside), folder.remote)
        shard.fetch()
        yield shard


def rows_at(folder: ShardFolder, positions: Sequence[int]) -> list[dict[str, Any]]:
    """Return the stored rows at `positions`; each shard is opened once. Raises as
    `opened_shard`.
    """
    shard_of = np.searchsorted(folder.starts, positions, side="right") - 1
    places = (positions - folder.starts[shard_of]).tolist()
    wanted: dict[int, set[int]] = {}
    for number, place in zip(shard_of.tolist(), places, strict=True):
        wanted.setdefault(number, set()).add(place)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number, here in sorted(wanted.items()):
        with opened_shard(folder, number) as shard:
            for place in here:
                found[number, place] = shard.row(place)
    return [found[key] for key in zip(shard_of.tolist(), places, strict=True)]
