"""Folders of shards: on this machine, or at s3://bucket/folder with a folder in the cache."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds import distributed
from pargo_ds.addresses import SCHEME
from pargo_ds.data.shards import cache as caches
from pargo_ds.data.shards import s3
from pargo_ds.data.shards.mds import INDEX_NAME, Index, read_index
from pargo_ds.errors import StoreError

__all__ = [
    "ShardFolder",
    "StoreError",
    "download",
    "safe_join",
    "is_remote",
    "open_folder",
    "upload_folder",
]

log = logging.getLogger("pargo_ds")


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards with its index. The shards are in the folder itself or in `remote`."""

    path: str
    """Path or address in the words of the run file."""
    local: Path
    """The folder with index.json: the folder of shards itself, or its folder in the cache."""
    remote: str | None
    """Folder or address from which the shards are fetched; None if they are read from `local`."""
    shards: list[dict[str, Any]] = field(compare=False, repr=False)
    """The entries of the index, which is read once."""
    index_sha256: str
    """Hash of index.json, which names every shard with its size and hash."""

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """(shards + 1,) position of the first sample of each shard in the folder, and at the end
        the number of all samples.
        """
        return np.cumsum([0, *(shard["samples"] for shard in self.shards)])


def is_remote(path: str | Path) -> bool:
    """Whether `path` is an address such as s3://bucket/folder and no local path."""
    return SCHEME.match(str(path)) is not None


def open_folder(path: str | Path, cache: str | Path | None = None, name: str = "") -> ShardFolder:
    """Open a folder of shards. Collective.

    For a folder in an object store the first rank of each machine fetches index.json, and removes
    cached shards that belong to an older index. A compressed local folder is also unpacked into the
    cache, because nothing is written into the folder itself.

    Args:
        path: a local folder or an address.
        cache: a folder on a disk of the machine (default: a folder in the temporary folder).
        name: the name of the run.

    Raises:
        StoreError: the store does not answer, or there is no whole folder of shards at `path`.
        ValueError: as `read_index`.
        CacheError: another process uses the same folder of the cache.
    """
    path = str(path)
    if is_remote(path):
        s3.bucket_and_key(path)
        remote = path.rstrip("/")
    else:
        index = read_index(path)
        if not any(shard["zip_data"] for shard in index.shards):
            _check_names(Path(path), index)
            return ShardFolder(path, Path(path), None, *index)
        remote = str(Path(path).absolute())
    place = caches.place_of(remote, cache, name)
    leads = distributed.local_rank() == 0
    fetched = distributed.run_on_all_ranks(
        lambda: _fetch_index(remote, place, name) if leads else None
    )
    index = fetched or read_index(place)
    first = distributed.broadcast_object(index.sha256)
    distributed.run_on_all_ranks(lambda: _check_same(path, index.sha256, first))
    return ShardFolder(path, place, remote, *index)


def _fetch_index(remote: str, place: Path, run: str) -> Index:
    caches.lock_cache_dir(place, run)
    fresh = place / ".fresh" / INDEX_NAME
    if not download(f"{remote}/{INDEX_NAME}", fresh):
        where = remote
        if is_remote(remote):
            where = f"{remote} at {s3.endpoint()}"
        raise StoreError(
            f"{where} is not a folder of shards: it has no "
            f"{INDEX_NAME}. Expected what tools/build_shards.py writes, uploaded to its end"
        )
    try:
        index = read_index(fresh.parent)
        _check_names(place, index)
    except ValueError as error:
        raise StoreError(f"{remote}: {error}") from error
    removed = caches.sync_index(place, fresh)
    if removed:
        log.warning(
            "%s: removed %d files that do not belong to %s as it is now", place, removed, remote
        )
    return index


def _check_names(folder: Path, index: Index) -> None:
    for shard in index.shards:
        for info in filter(None, (shard["raw_data"], shard["zip_data"])):
            safe_join(folder, info["basename"])


def _check_same(path: str, mine: str, first: str) -> None:
    if mine != first:
        raise StoreError(
            f"{path} changed while the machines opened it; start again when it is whole"
        )


def safe_join(folder: Path, name: str) -> Path:
    """Join the name of a file, as an index gives it, to `folder`.

    Raises StoreError when the result would lie outside the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise StoreError(
            f"{folder}: the file name {name!r} leads out of the folder; write the shards anew"
        )
    return folder.joinpath(*parts)


def download(remote_file: str, local: Path, *, stop: Callable[[], bool] = s3.never) -> bool:
    """Copy an object of a store, or the file of a local folder, to `local`, which is whole or
    absent at any moment. Return False if there is no such object.

    The download is given up when `stop` returns True; it is called from time to time.

    Raises StoreError when the store does not answer, refuses, or has no such bucket, and OSError
    when `local` cannot be written.
    """
    local.parent.mkdir(parents=True, exist_ok=True)
    aside = local.with_name(f"{local.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        if is_remote(remote_file):
            found = s3.get(remote_file, aside, stop)
        else:
            found = Path(remote_file).is_file()
            if found:
                shutil.copyfile(remote_file, aside)
        if found:
            aside.replace(local)
        return found
    finally:
        aside.unlink(missing_ok=True)


def upload_folder(local: Path, remote: str, last: str = INDEX_NAME, *, force: bool = False) -> None:
    """Upload every file below `local`, several at a time, and compare the sizes. The file `last`
    follows when all others are uploaded, so an interrupted upload does not look like a whole
    folder.

    With `force`, a file `last` that exists in `remote` is deleted first.

    Raises:
        StoreError: the store fails, an object does not have the size of its file, `local` has no
            file `last`, or `remote` has one and `force` is false.
    """
    there = [path for path in sorted(Path(local).rglob("*")) if path.is_file()]
    files = {path.relative_to(local).as_posix(): path for path in there}
    if last not in files:
        raise StoreError(f"{local} has no {last}; nothing was uploaded to {remote}")
    addresses = {name: f"{remote.rstrip('/')}/{name}" for name in files}
    if s3.object_size(addresses[last]) is not None:
        if not force:
            raise StoreError(
                f"{remote} has a {last} already; choose another folder, or force to replace it"
            )
        s3.delete(addresses[last])
    total = sum(path.stat().st_size for path in files.values())
    with tqdm(
        total=total, desc=f"uploading to {remote}", unit="B", unit_scale=True, disable=None
    ) as bar:
        with ThreadPoolExecutor(s3.CONNECTIONS) as pool:
            others = [name for name in files if name != last]
            jobs = [pool.submit(s3.put, addresses[name], files[name]) for name in others]
            try:
                for job in as_completed(jobs):
                    bar.update(job.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        bar.update(s3.put(addresses[last], files[last]))
