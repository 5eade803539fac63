"""Places on this machine's disk where the shards of an object store are kept while a job uses them.

    CACHE/<run>/<folder>-<hash of its address>/   index.json, shards, .owner (locked while its job lives)

Each run has its own places, so two jobs never delete each other's shards; a restarted run finds its shards again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from pargo_ds.data.shards import INDEX_NAME

OWNER_FILE = ".owner"
TAKEN_FOR_S = 10
"""A killed job's workers live on for some seconds and hold its places."""
_held: dict[tuple[int, Path], int] = {}


class CacheError(ValueError):
    """A place in the cache that this job cannot use."""


def place_of(address: str, cache: str | Path | None, run: str) -> Path:
    """Where the shards of `address` are kept: below `cache`, or below the user's part of the temporary folder.

    Raises CacheError when that part belongs to somebody else.
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


def own(place: Path, run: str) -> bool:
    """Take a place for this process, until it and its children end; false when it has it already.

    Raises CacheError naming the process that has it.
    """
    if (os.getpid(), place) in _held:
        return False
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place / OWNER_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    give_up_at = time.monotonic() + TAKEN_FOR_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                owner = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise CacheError(
                    f"the cache {place} is in use by {owner}; two jobs cannot share it: give this run another name "
                    "or another data.cache (a folder on a disk of each machine, not one that machines share)"
                ) from None
            time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} (run {run or 'unnamed'})\n".encode(), 0)
    _held[os.getpid(), place] = descriptor
    for path in place.rglob("*.part"):  # what a killed job was fetching
        path.unlink()
    return True


def renew(place: Path, fresh: Path) -> int:
    """Put the index `fresh` (alone in a folder) into a place, and remove what is not its; returns how many files went.

    Cached shards stay that both the old index and the new one name, with the same hashes.
    """
    old_index = place / INDEX_NAME
    if old_index.is_file() and old_index.read_bytes() == fresh.read_bytes():
        fresh.unlink()
        fresh.parent.rmdir()
        return 0
    old, new = _files(old_index), _files(fresh)
    stay = {place / name for name, info in new.items() if info["hashes"] and old.get(name) == info}
    old_index.unlink(missing_ok=True)  # first: shards without an index are nobody's
    removed = 0
    for path in place.rglob("*"):
        if path.is_file() and path.name != OWNER_FILE and path != fresh and path not in stay:
            path.unlink()
            removed += 1
    fresh.replace(old_index)
    fresh.parent.rmdir()
    return removed


def _files(index: Path) -> dict[str, dict[str, Any]]:
    """Name -> size and hashes of each raw shard of an index; nothing when there is none or it is damaged."""
    try:
        shards = json.loads(index.read_text())["shards"]
        return {shard["raw_data"]["basename"]: shard["raw_data"] for shard in shards}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
