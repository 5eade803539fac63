"""Folders on a disk of this machine that hold the shards of an object store while a job uses them.

    CACHE/<run>/<folder>-<hash of its address>/
        index.json, the shards, and .owner, which is locked while the job lives

Each run has folders of its own, so that no job deletes the shards of another one. A run that is
restarted finds its shards again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any

from pargo_ds.data.shards.mds import INDEX_NAME
from pargo_ds.errors import CacheError
from pargo_ds.files.lock import NoLocksError, lock

OWNER_FILE = ".owner"
TAKEN_FOR_S = 10
"""Seconds to wait for a folder that is in use: the workers of a killed job live on for some seconds
and keep its folders locked.
"""
_held: dict[tuple[int, Path], int] = {}


def place_of(address: str, cache: str | Path | None, run: str) -> Path:
    """Return the folder for the shards of `address`, below `cache` or below the user's folder in
    the temporary folder.

    Raises CacheError when the latter belongs to another user.
    """
    root = Path(cache) if cache else _users_folder()
    words = "-".join(address.rstrip("/").split("/")[-2:])
    name = f"{_plain(words)}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    return (root / (_plain(run) or "unnamed") / name).absolute()


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip(".")[:80]


def _users_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"pargo_ds_cache_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise CacheError(f"{folder} belongs to another user; set data.cache to a folder of yours")
    return folder


def lock_cache_dir(place: Path, run: str) -> bool:
    """Lock a folder of the cache for this process until it and its children end. Return False if
    this process has locked it before.

    Raises CacheError naming the process that holds the lock, and where files have no locks.
    """
    if (os.getpid(), place) in _held:
        return False
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place / OWNER_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        locked = lock(descriptor, TAKEN_FOR_S)
    except NoLocksError as error:
        os.close(descriptor)
        raise CacheError(
            f"the processes of a job share the cache {place} by locks, and its file system has none; "
            "set data.cache to a folder on a disk of each machine"
        ) from error
    if not locked:
        owner = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise CacheError(
            f"the cache {place} is in use by {owner or 'another process'}; two jobs cannot share it: "
            "give this run another name or another data.cache (a folder on a disk of each machine, "
            "not one that machines share)"
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(
        descriptor,
        f"process {os.getpid()} on {socket.gethostname()} (run {run or 'unnamed'})\n".encode(),
        0,
    )
    _held[os.getpid(), place] = descriptor
    for path in place.rglob("*.part"):  # downloads of a killed job
        path.unlink()
    return True


def sync_index(place: Path, fresh: Path) -> int:
    """Replace the index of a folder of the cache by `fresh`, and remove the files that the new
    index does not name. Return the number of removed files.

    Shards stay in the cache if the old and the new index name them with the same hashes. The folder
    of `fresh` holds no other file and is removed.
    """
    old_index = place / INDEX_NAME
    if old_index.is_file() and old_index.read_bytes() == fresh.read_bytes():
        fresh.unlink()
        fresh.parent.rmdir()
        return 0
    old, new = _files(old_index), _files(fresh)
    stay = {place / name for name, info in new.items() if info["hashes"] and old.get(name) == info}
    # The index goes first: after a kill, shards without an index are removed, never trusted.
    old_index.unlink(missing_ok=True)
    removed = 0
    for path in place.rglob("*"):
        if path.is_file() and path.name != OWNER_FILE and path != fresh and path not in stay:
            path.unlink()
            removed += 1
    fresh.replace(old_index)
    fresh.parent.rmdir()
    return removed


def _files(index: Path) -> dict[str, dict[str, Any]]:
    """Return the size and the hashes of each raw shard that an index names; {} if the index is
    missing or damaged.
    """
    try:
        shards = json.loads(index.read_text())["shards"]
        return {shard["raw_data"]["basename"]: shard["raw_data"] for shard in shards}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
