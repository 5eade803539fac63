"""Where folders of shards lie: on this machine, or at s3://bucket/folder with a place in the cache."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pargo_ds import distributed
from pargo_ds.data import cache as caches
from pargo_ds.data import s3
from pargo_ds.data.s3 import StoreError
from pargo_ds.data.shards import INDEX_NAME, read_index

__all__ = ["ShardFolder", "StoreError", "download", "inside", "is_remote", "open_folder", "upload_folder"]

log = logging.getLogger("pargo_ds")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards that can be read: its index lies on this machine, its shards there or in `remote`."""

    path: str
    """As the run file names it."""
    local: Path
    """Where index.json lies: the folder itself, or its place in the cache."""
    remote: str | None
    """Where the shards come from; None when they are read where they are."""


def is_remote(path: str | Path) -> bool:
    """True for an address with a scheme, such as s3://bucket/folder; false for a local path."""
    return SCHEME.match(str(path)) is not None


def open_folder(path: str | Path, cache: str | Path | None = None, name: str = "") -> ShardFolder:
    """Open a folder of shards; of an object store's, index.json is fetched, and shards of an older one are forgotten.

    A compressed local folder is unpacked into the cache too, so that nothing is written into it. `cache` is a folder on
    a disk of the machine (default: below the temporary folder), `name` the run's. All ranks call it together; the first
    of each machine fetches.

    Raises:
        StoreError: the store does not answer, or there is no whole folder of shards at `path`.
        ValueError: as `read_index`.
        CacheError: another process uses the place in the cache.
    """
    path = str(path)
    if is_remote(path):
        s3.bucket_and_key(path)
        remote = path.rstrip("/")
    else:
        index = read_index(path)
        if not any(shard["zip_data"] for shard in index["shards"]):
            for shard in index["shards"]:
                inside(Path(path), shard["raw_data"]["basename"])
            return ShardFolder(path, Path(path), None)
        remote = str(Path(path).absolute())
    place = caches.place_of(remote, cache, name)
    distributed.together(lambda: _fetch_index(remote, place, name) if distributed.local_rank() == 0 else None)
    mine = hashlib.sha256((place / INDEX_NAME).read_bytes()).hexdigest()
    first = distributed.broadcast_object(mine)
    distributed.together(lambda: _check_same(path, mine, first))
    return ShardFolder(path, place, remote)


def _fetch_index(remote: str, place: Path, run: str) -> None:
    caches.own(place, run)
    fresh = place / ".fresh" / INDEX_NAME
    if not download(f"{remote}/{INDEX_NAME}", fresh):
        raise StoreError(
            f"{remote}{f' at {s3.endpoint()}' if is_remote(remote) else ''} is not a folder of shards: it has no "
            f"{INDEX_NAME}. Expected what tools/build_shards.py writes, uploaded to its end"
        )
    try:
        for shard in read_index(fresh.parent)["shards"]:
            for info in filter(None, (shard["raw_data"], shard["zip_data"])):
                inside(place, info["basename"])
    except ValueError as error:
        raise StoreError(f"{remote}: {error}") from error
    removed = caches.renew(place, fresh)
    if removed:
        log.warning("%s: removed %d files that do not belong to %s as it is now", place, removed, remote)


def _check_same(path: str, mine: str, first: str) -> None:
    if mine != first:
        raise StoreError(f"{path} changed while the machines opened it; start again when it is whole")


def inside(folder: Path, name: str) -> Path:
    """The path of `name` below `folder`; StoreError when it would lie elsewhere (names come from an index)."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise StoreError(f"{folder}: the file name {name!r} leads out of the folder; write the shards anew")
    return folder.joinpath(*parts)


def download(remote_file: str, local: Path, *, stop: Callable[[], bool] = s3.never) -> bool:
    """Copy an object, or the file of a local folder, to `local`, which is whole or absent at any moment.

    Returns false when there is no such object. `stop` is asked now and then whether to give up.

    Raises StoreError when the store does not answer, refuses, or has no such bucket, and OSError for `local`.
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
    """Upload every file below `local`, several at once, `last` when all others are there; sizes are compared.

    So an interrupted upload leaves no `last`, and nobody takes the folder for whole.

    Raises:
        StoreError: the store fails, an object does not have its file's size, `local` has no file `last`, or `remote`
            has one already and `force` is false (with `force` that one goes first).
    """
    files = {path.relative_to(local).as_posix(): path for path in sorted(Path(local).rglob("*")) if path.is_file()}
    if last not in files:
        raise StoreError(f"{local} has no {last}; nothing was uploaded to {remote}")
    addresses = {name: f"{remote.rstrip('/')}/{name}" for name in files}
    if s3.object_size(addresses[last]) is not None:
        if not force:
            raise StoreError(f"{remote} has a {last} already; choose another folder, or force to replace it")
        s3.delete(addresses[last])
    total = sum(path.stat().st_size for path in files.values())
    with tqdm(total=total, desc=f"uploading to {remote}", unit="B", unit_scale=True, disable=None) as bar:
        with ThreadPoolExecutor(s3.CONNECTIONS) as pool:
            jobs = [pool.submit(s3.put, addresses[name], path) for name, path in files.items() if name != last]
            try:
                for job in as_completed(jobs):
                    bar.update(job.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        bar.update(s3.put(addresses[last], files[last]))
