"""Shards that the processes of a machine fetch for each other, once and within a limit.

The processes share files in the cache and no memory. The file of a shard appears when it has been
checked. The process that fetches it holds a lock on the file `.SHARD.lock`, which the system frees
when the process dies. So nothing has to be cleaned up after SIGKILL, and forks do no harm.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pargo_ds.data.packing.order import SHUFFLE_BLOCK
from pargo_ds.data.shards.s3 import DOWNLOAD_LIMIT_S, never
from pargo_ds.data.shards.shard_files import Shard
from pargo_ds.errors import ShardError, StoreError
from pargo_ds.files.lock import lock, unlock

WAIT_LIMIT_S = DOWNLOAD_LIMIT_S + 60
"""Longest wait in seconds for a shard that another process prepares, and for room in the cache."""
TICK_S = 0.01
"""Seconds between two looks of a process that waits."""
RESERVED = ".room.part"
"""Ending of a sparse file that reserves room in the cache for a shard that is being fetched. The
file has the length of the reserved room.
"""


class Stopped(Exception):
    """The preparation of a shard was given up because nobody waits for it any more."""


class ShardCache:
    """Makes shards ready to be read: it fetches shards of a store into the cache, and verifies each
    shard once.

    With `limit`, in bytes, the cached shards that were not used for the longest time are deleted to
    make room. Files of local folders are never deleted.

    Raises ValueError when the limit is too small.
    """

    def __init__(self, shards: list[Shard], limit: int | None) -> None:
        self._shards, self._limit = shards, limit
        self._places = sorted({shard.folder for shard in shards if shard.remote is not None})
        # One byte for each shard: 1 if a process of this rank has verified it. Forked workers share
        # this memory, so a shard is not hashed again by each worker in each epoch.
        self._verified = mmap.mmap(-1, max(1, len(shards)))
        if limit is not None:
            self._check_limit(limit)
            self._reserve(None, 0, never)  # an earlier start may have left more than the limit

    def is_ready(self, number: int) -> bool:
        """Whether a shard can be read as it is."""
        shard = self._shards[number]
        return bool(self._verified[number]) and (shard.remote is None or os.path.exists(shard.path))

    def prepare(self, number: int, stop: Callable[[], bool]) -> None:
        """Fetch and verify a shard. Raises as `row`, and Stopped when `stop` returns True."""
        with self._prepared(number, stop):
            pass

    def row(self, number: int, place: int) -> dict[str, Any]:
        """Return a row of a shard; the shard is first fetched and verified if that was not done
        yet.

        Raises ShardError.
        """
        shard = self._shards[number]
        # Other processes may delete a shard at any time to make room for theirs.
        with contextlib.suppress(FileNotFoundError):
            if self._verified[number]:
                if self._limit is not None and shard.remote is not None:
                    os.utime(shard.path)
                return shard.row(place)
        with self._prepared(number, never):
            return shard.row(place)

    @contextlib.contextmanager
    def _prepared(self, number: int, stop: Callable[[], bool]) -> Iterator[None]:
        """Within this context a shard is ready, and its lock is held so that nobody deletes it."""
        shard = self._shards[number]
        if shard.remote is None:
            with _named(shard, stop):
                shard.verify()
                self._verified[number] = 1
                yield
            return
        with turn(shard, stop) as failure, _named(shard, stop):
            if not self.is_ready(number) and not shard.verify():
                if failure:
                    raise ShardError(failure)
                with self._room_for(shard, stop):
                    shard.fetch(stop)
            self._verified[number] = 1
            yield

    @contextlib.contextmanager
    def _room_for(self, shard: Shard, stop: Callable[[], bool]) -> Iterator[None]:
        """Within this context the bytes that are needed to fetch a shard are reserved."""
        if self._limit is None:
            yield
            return
        reserved = shard.path.with_name(shard.path.name + RESERVED)
        wait_until(lambda: self._reserve(reserved, shard.most_bytes, stop), stop, shard.name)
        try:
            yield
        finally:
            # Another process that counts now must find either this file or the shard.
            with self._counting(never):
                reserved.unlink(missing_ok=True)

    def _reserve(self, reserved: Path | None, needed: int, stop: Callable[[], bool]) -> bool:
        """Reserve bytes by a file of that length. Return False if there is no room now, because too
        many shards are in use.
        """
        with self._counting(stop):
            if not self._make_room(needed):
                return False
            if reserved is not None:
                with open(reserved, "wb") as empty:
                    empty.truncate(needed)
            return True

    @contextlib.contextmanager
    def _counting(self, stop: Callable[[], bool]) -> Iterator[None]:
        """Within this context this thread is the only one of the machine that counts the bytes in
        the cache.
        """
        self._places[0].mkdir(parents=True, exist_ok=True)
        with open(self._places[0] / ".limit.lock", "a") as file:
            wait_until(lambda: lock(file), stop, str(self._places[0]))
            try:
                yield
            finally:
                unlock(file)

    def _make_room(self, needed: int) -> bool:
        """Delete shards until `needed` more bytes fit. Return False if too many shards are in
        use.
        """
        assert self._limit is not None
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) + needed - self._limit
        for _, size, path in files:
            if excess <= 0:
                break
            if not path.name.endswith(RESERVED) and _delete_if_idle(path):
                excess -= size
        return excess <= 0

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (time of last use, bytes, path) of each cached shard and each reservation."""
        for place in self._places:
            for folder, _, names in os.walk(place):
                for name in names:
                    if name.endswith((".mds", RESERVED)):
                        path = Path(folder, name)
                        with contextlib.suppress(FileNotFoundError):
                            found = path.stat()
                            yield found.st_mtime, found.st_size, path

    def _check_limit(self, limit: int) -> None:
        cached = (shard for shard in self._shards if shard.remote is not None)
        largest = max((shard.most_bytes for shard in cached), default=0)
        if limit < 4 * largest:
            raise ValueError(
                f"data.cache_limit: {limit} bytes hold less than four of the largest shards, of "
                f"{largest} bytes each (packed and unpacked); raise it to at least {4 * largest}b, "
                f"better to what an epoch's shuffle block of {SHUFFLE_BLOCK} samples takes"
            )


@contextlib.contextmanager
def turn(shard: Shard, stop: Callable[[], bool] = never) -> Iterator[str]:
    """Within this context this thread is the only one of the machine that prepares a shard.

    It yields the reason for which the previous thread failed, if this thread had to wait for that
    one, else "". So all threads that wait for a shard fail together, and do not try one after
    another, each for a long time. The reason is stored in the lock file; a thread that did not wait
    ignores it.

    Raises ShardError after WAIT_LIMIT_S, and Stopped when `stop` returns True.
    """
    path = lock_file(shard.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        waited = wait_until(lambda: lock(file), stop, shard.name)
        try:
            failure = ""
            file.seek(0)
            if waited:
                failure = file.read()
            file.truncate(0)
            yield failure
        except ShardError as error:
            file.write(str(error))
            file.flush()
            raise
        finally:
            unlock(file)


def lock_file(path: Path) -> Path:
    """Return the lock file of a cached shard; it is in the same folder."""
    return path.with_name(f".{path.name}.lock")


def wait_until(done: Callable[[], bool], stop: Callable[[], bool], name: str) -> bool:
    """Wait until `done` returns True. Return whether it was necessary to wait.

    Raises ShardError, which names `name`, after WAIT_LIMIT_S, and Stopped when `stop` returns True.
    """
    waited, give_up_at = False, time.monotonic() + WAIT_LIMIT_S
    while not done():
        if stop():
            raise Stopped
        if time.monotonic() > give_up_at:
            raise ShardError(f"{name} was not ready after {WAIT_LIMIT_S} s")
        waited = True
        time.sleep(TICK_S)
    return waited


def _delete_if_idle(path: Path) -> bool:
    """Delete a cached shard. Return False if its lock is held, because it is prepared or read."""
    with open(lock_file(path), "a") as file:
        if not lock(file):
            return False
        path.unlink(missing_ok=True)
        unlock(file)
    return True


@contextlib.contextmanager
def _named(shard: Shard, stop: Callable[[], bool]) -> Iterator[None]:
    """Within this context errors of the disk and the store become a ShardError that names a
    shard.
    """
    try:
        yield
    except (OSError, StoreError) as error:
        if stop():
            raise Stopped from error
        raise ShardError(f"{shard.name}: {error}") from error
