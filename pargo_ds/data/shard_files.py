"""The file of one shard: compared with its index, and fetched from where it is stored."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from streaming.base.compression import decompress
from streaming.base.format import FileInfo, Reader
from streaming.base.hashing import get_hash, is_hash

from pargo_ds.data.stores import download

log = logging.getLogger("pargo_ds")
HASH = "xxh64"


class ShardError(RuntimeError):
    """A shard that cannot be read or is damaged; the message names its file."""


def raw_path(shard: Reader) -> Path:
    """Where a shard is read from: its file, unpacked if it was packed."""
    return Path(shard.dirname) / shard.split / shard.raw_data.basename


def check_shard(shard: Reader) -> None:
    """Compare a shard's file with the size and the hash in its index (no hash there: only the size).

    streaming checks a hash only after a download, never for a file that is there already.

    Raises ShardError when they differ and OSError when the file cannot be read.
    """
    fault = _fault(raw_path(shard), shard.raw_data)
    if fault:
        raise ShardError(f"{raw_path(shard)} is damaged: {fault}; copy or write it anew")


def fetch_shard(shard: Reader, source: str, stop: Callable[[], bool]) -> None:
    """Have a shard's file in the cache, unpacked and right; one that is there and damaged is fetched again.

    The file appears when it has been checked. `source` is the folder in the store; `stop` says when to give up.

    Raises:
        ShardError: `source` lacks the shard, or its file there does not fit the index (after a second try).
        StoreError: the store does not answer.
    """
    path = raw_path(shard)
    if path.is_file():
        fault = _fault(path, shard.raw_data)
        if fault is None:
            return
        log.warning("%s in the cache is damaged: %s; it is fetched again from %s", path, fault, source)
        path.unlink()
    stored = shard.zip_data or shard.raw_data
    remote_file = f"{source}/{stored.basename}"
    arrived = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.checked.part")
    try:
        for last_try in (False, True):
            if not download(remote_file, arrived, stop=stop):
                raise ShardError(f"{remote_file} is missing, though index.json names it; upload or write it anew")
            fault = _fault(arrived, stored) or (_unpack(arrived, shard) if shard.zip_data else None)
            if fault is None:
                arrived.replace(path)
                return
            if not last_try:
                log.warning("%s came damaged: %s; it is fetched once more", remote_file, fault)
        raise ShardError(f"{remote_file} is damaged: {fault}; upload or write it anew, then start again")
    finally:
        arrived.unlink(missing_ok=True)


def _fault(path: Path, info: FileInfo) -> str | None:
    """What is wrong with a file, compared with what the index says of it; None when it is right."""
    size = path.stat().st_size
    if size != info.bytes:
        return f"it has {size} bytes where index.json says {info.bytes}"
    algorithm = HASH if HASH in info.hashes else next(filter(is_hash, sorted(info.hashes)), None)
    if algorithm and get_hash(algorithm, path.read_bytes()) != info.hashes[algorithm]:
        return f"its {algorithm} hash is not the one in index.json"
    return None


def _unpack(path: Path, shard: Reader) -> str | None:
    """Replace a packed file by what is in it; returns what is wrong, as `_fault`."""
    try:
        path.write_bytes(decompress(shard.compression, path.read_bytes()))
    except OSError:
        raise
    except Exception as error:  # each of streaming's packers has its own errors
        return f"it cannot be unpacked ({type(error).__name__}: {error})"
    return _fault(path, shard.raw_data)
