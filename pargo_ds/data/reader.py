"""StreamingDataset as the engine that reads, with its silent faults turned into errors.

streaming 0.13 swallows an exception of its download thread: a damaged or missing shard, or a store that is down, ends
the epoch early with exit status 0, or leaves other workers waiting for ever. `SampleReader` makes each such fault a
`ShardError`. It also reads exactly the samples it is told to, in that order: which ones is decided by `plan.py`, not by
streaming's partition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, sleep, time_ns
from typing import Any

import numpy as np
import psutil
from filelock import FileLock
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base.constant import TICK
from streaming.base.dataset import _ShardState
from streaming.base.format import Reader
from streaming.base.shared import SharedArray, _get_path
from streaming.base.util import bytes_to_int

from pargo_ds import distributed
from pargo_ds.data.order import SHUFFLE_BLOCK
from pargo_ds.data.s3 import DOWNLOAD_LIMIT_S
from pargo_ds.data.shard_files import ShardError, check_shard, fetch_shard, raw_path
from pargo_ds.data.shared_memory import (
    HOLDERS,
    name_ranks_of_this_node,
    one_start_at_a_time,
    own_prefix,
    release_with,
    remove_stale_shared_memory,
)
from pargo_ds.data.stores import ShardFolder

FAILED = max(_ShardState) + 1
"""Our mark in streaming's shared array of shard states: some process could not read this shard."""
OF_ONE_PROCESS = ("_executor", "_event", "_iterator", "_cache_filelock")
"""Threads and locks of a StreamingDataset: useless in another process, and made anew where they are missing."""
SAMPLES_AHEAD = 512
"""Samples whose shards each worker fetches ahead of the one that it reads."""
WAIT_LIMIT_S = DOWNLOAD_LIMIT_S + 60
"""Longest wait for a shard that another living process prepares."""
LOCK_LIMIT_S = 30
"""Longest wait for the lock of the cache, which is never held for long."""
ABSENT, PRESENT = 0, -1
"""In the shared array of holders: no file in the cache, and a file that counts in its usage; else a process's id."""


class CheckedStream(Stream):
    """A folder of shards of which each is compared with its hash before first use, also one that was there before.

    To streaming it is a local folder, which fills up: it neither downloads nor deletes anything itself.
    """

    def __init__(self, folder: ShardFolder) -> None:
        super().__init__(local=str(folder.local))
        self.source = folder.remote

    def apply_default(self, default: dict[str, Any]) -> None:
        super().apply_default(default)
        self.safe_keep_zip = False  # else streaming drops unpacked shards whose packed form is not beside them

    def prepare(self, shard: Reader, stop: Callable[[], bool]) -> None:
        """Have the shard's file in place and right; raises ShardError or StoreError."""
        if self.source is not None:
            fetch_shard(shard, self.source, stop)
        elif not raw_path(shard).is_file():
            raise ShardError(f"{raw_path(shard)} is missing, though index.json names it; copy or write it anew")
        else:
            check_shard(shard)


class SampleReader(StreamingDataset):
    """Rows of one or several folders of shards in the order given to `assign`; a thread fetches the shards ahead.

    Positions are global: those of a folder begin at its `sample_offset_per_folder`, `(folders + 1,)`. All ranks
    construct it together. `for row in reader` raises ShardError instead of ending early. `cache_limit`, such as 200gb,
    bounds the shards kept on this machine; those not used for longest go first, never files of a folder that is read
    where it is.

    Raises ValueError when a folder comes twice, when the limit is too small or there is nothing to limit, and when the
    launcher does not say how many ranks this machine runs.
    """

    def __init__(self, folders: Sequence[ShardFolder], cache_limit: str | None = None) -> None:
        if len({folder.local for folder in folders}) < len(folders):
            raise ValueError(f"a folder of shards comes twice: {', '.join(folder.path for folder in folders)}")
        if cache_limit is not None and all(folder.remote is None for folder in folders):
            raise ValueError(
                f"data.cache_limit: {cache_limit} would delete shards of {folders[0].path}, which are not in a cache; "
                "leave it out for folders that are read where they are"
            )
        limit = _bytes(cache_limit)
        name_ranks_of_this_node()
        # Ahead by many samples, a worker of a small cache would drop what others are about to read.
        ahead = SAMPLES_AHEAD if cache_limit is None else None
        leads = distributed.local_rank() == 0
        with one_start_at_a_time(leads):
            distributed.together(lambda: remove_stale_shared_memory() if leads else None)
            super().__init__(streams=[CheckedStream(folder) for folder in folders], batch_size=1, predownload=ahead)
            distributed.barrier()
        self.cache_limit = limit
        self.sample_offset_per_folder = np.append(self.sample_offset_per_stream, self.num_samples)
        sourced = np.array([folder.remote is not None for folder in folders])
        self._in_cache = sourced[self.stream_per_shard]  # (shards,): files of other folders are never deleted
        self._check_limit()
        self._holders = SharedArray(self.num_shards, np.int64, _get_path(self._shm_prefix_int, HOLDERS))
        self._work = np.zeros(0, np.int64)
        self._failure: ShardError | None = None
        self._pid = os.getpid()
        owner = None
        if self._unique_rank_world.is_local_leader:
            owner = own_prefix(self._shm_prefix_int)
            self._note_what_is_there()
        arrays = [self._next_epoch.arr, self._cache_usage.arr, self._shared_barrier._arr]
        arrays += [self._shard_states, self._shard_access_times, self._holders]
        release_with(self, [self._locals_shm, *(array.shm for array in arrays)], self._shm_prefix_int, owner)
        distributed.barrier()

    def shards_of_folder(self, folder: int) -> range:
        """Numbers of the shards of the folder at this place in `folders`."""
        first = int(self.shard_offset_per_stream[folder])
        return range(first, first + int(self.shards_per_stream[folder]))

    def assign(self, samples: NDArray[np.int64]) -> None:
        """Set the sample positions that the next `for row in reader` of this process yields."""
        self._work = samples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._drop_what_a_fork_broke()
        read = 0
        try:
            for row in super().__iter__():
                read += 1
                yield row
        except RuntimeError as error:
            failure = self._failure or self._failure_elsewhere()
            if failure is None:
                raise
            raise failure from error  # streaming's error only says that a background thread failed
        finally:
            if hasattr(self, "_iterator"):
                self._iterator.non_blocking_exit()  # ends the threads when the caller stops early
        if read < len(self._work):
            short = ShardError(f"only {read} of {len(self._work)} samples came, without an error")
            raise self._failure or self._failure_elsewhere() or short

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """The row at a global position, whose shard is fetched first when it is not there; raises ShardError."""
        shard_id, _ = self.spanner[sample_id]
        if self._shard_states[shard_id] != _ShardState.LOCAL:
            self.prepare_shard(shard_id)
        return super().get_item(sample_id, retry)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Have a shard on this machine, checked; without `blocking` another process may still be preparing it.

        A failure is kept for `__iter__`, and marked for all processes of this machine.
        """
        self._prepare(shard_id, blocking, self._has_failed if blocking else self._is_ending)

    def on_exception(self, future: Any) -> None:
        """End the other threads too; `__iter__` raises the error."""
        if future.exception():
            self._event.set()

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        return self._work

    def _resume_incr_epoch(self) -> tuple[int, int]:
        # The plan knows the position. Without streaming's barrier a dead worker cannot block the others.
        return 0, 0

    def _prepare_thread(self, it: Any) -> None:
        self._walk(it, "prepare_index", wait=False)

    def _ready_thread(self, it: Any) -> None:
        self._walk(it, "ready_index", wait=True)

    def _walk(self, it: Any, index: str, wait: bool) -> None:
        """Prepare the shards of the samples ahead, one after another; with `wait`, pass when a shard is there.

        streaming's threads do so sample by sample, which takes a good part of the time of reading, and wait for ever
        when another process fails or dies, or deletes the shard they wait for.
        """
        shard_of = np.searchsorted(self.sample_offset_per_shard, it.sample_ids, side="right") - 1
        states, at = self._shard_states.numpy(), 0
        try:
            while at < it.total and not self._is_ending():
                end = min(it.total, it.yield_index + 1 + self.predownload)
                lacking = np.flatnonzero(states[shard_of[at:end]] != _ShardState.LOCAL)
                at = at + int(lacking[0]) if len(lacking) else end
                setattr(it, index, at)
                if at < end:
                    self._prepare(int(shard_of[at]), wait, self._is_ending)
                    at += 1
                else:
                    self._raise_failure_elsewhere()
                    sleep(TICK)
            setattr(it, index, at)
        finally:
            it.on_exit()

    def _prepare(self, shard_id: int, wait: bool, stop: Callable[[], bool]) -> None:
        try:
            give_up_at, look_at = monotonic() + WAIT_LIMIT_S, monotonic() + 1
            while not self._prepare_here(shard_id, stop) and not stop():
                if not wait and self._shard_states[shard_id] == _ShardState.PREPARING:
                    return
                self._raise_failure_elsewhere()
                if monotonic() > look_at:
                    self._check_holder(shard_id, give_up_at)
                    look_at = monotonic() + 1
                sleep(TICK)
        except Exception as error:  # whatever it is: a thread must not lose it
            if stop():  # nobody waits for the shard any more
                return
            failure = error if isinstance(error, ShardError) else ShardError(f"{self._name(shard_id)}: {error}")
            self._failure = self._failure or failure  # before the mark, which the other threads look at
            if not len(self._failed()):  # one mark stops all; others would only blur the message
                self._shard_states[shard_id] = FAILED
            raise failure from error

    def _prepare_here(self, shard_id: int, stop: Callable[[], bool]) -> bool:
        """Prepare the shard unless it is there; false when another process does so, or there is no room for it yet."""
        if self._is_there(shard_id):
            self._shard_access_times[shard_id] = time_ns()
            return True
        with self._cache_lock():
            reserved = self._claim(shard_id)
        if reserved is None:
            return False
        shard = self.shards[shard_id]
        try:
            self.streams[self.stream_per_shard[shard_id]].prepare(shard, stop)
        except BaseException:
            if stop():
                self._settle(shard_id, _ShardState.REMOTE, reserved)
            raise
        self._settle(shard_id, _ShardState.LOCAL, reserved)
        return True

    def _settle(self, shard_id: int, state: int, reserved: int) -> None:
        """Note what became of a shard that this process prepared, for which `reserved` bytes were set aside."""
        shard = self.shards[shard_id]
        with self._cache_lock():
            present = raw_path(shard).is_file()
            if self._in_cache[shard_id]:
                self.cache_usage += shard.get_raw_size() * present - reserved
            self._holders[shard_id] = PRESENT if present else ABSENT
            self._shard_access_times[shard_id] = time_ns()
            self._shard_states[shard_id] = state

    def _claim(self, shard_id: int) -> int | None:
        """Make this process the one that prepares the shard; the bytes set aside for it, None when it cannot be now."""
        self._raise_failure_elsewhere()
        if self._shard_states[shard_id] == _ShardState.PREPARING or self._is_there(shard_id):
            return None
        needed = 0
        if self._in_cache[shard_id]:
            shard = self.shards[shard_id]
            counted = shard.get_raw_size() * (self._holders[shard_id] == PRESENT)
            needed = shard.get_max_size()  # packed and unpacked, for a moment
            if not self._make_room(shard_id, needed - counted):
                return None
            self.cache_usage += needed - counted
        self._holders[shard_id] = os.getpid()
        self._shard_states[shard_id] = _ShardState.PREPARING
        return needed

    def _make_room(self, shard_id: int, needed: int) -> bool:
        """Delete shards not used for longest until `needed` bytes are free; false when all are being prepared."""
        while self.cache_limit and self.cache_usage + needed > self.cache_limit:
            idle = np.flatnonzero(self._in_cache & (self._holders.numpy() == PRESENT))
            idle = idle[idle != shard_id]
            if not len(idle):
                return False
            coldest = int(idle[np.argmin(self._shard_access_times.numpy()[idle])])
            self._shard_states[coldest] = _ShardState.REMOTE
            self._holders[coldest] = ABSENT
            raw_path(self.shards[coldest]).unlink(missing_ok=True)
            self.cache_usage -= self.shards[coldest].get_raw_size()
        return True

    def _is_there(self, shard_id: int) -> bool:
        return self._shard_states[shard_id] == _ShardState.LOCAL and raw_path(self.shards[shard_id]).is_file()

    def _cache_lock(self) -> Any:
        # A new one each time: a lock that two threads of a process share would let both in.
        return FileLock(self._cache_filelock_path, timeout=LOCK_LIMIT_S).acquire(poll_interval=TICK)

    def _check_holder(self, shard_id: int, give_up_at: float) -> None:
        """Raise ShardError when the shard that this process waits for will not come."""
        if monotonic() > give_up_at:
            raise ShardError(f"{self._name(shard_id)} was not ready after {WAIT_LIMIT_S} s")
        with self._cache_lock():
            holder = int(self._holders[shard_id])
            if self._shard_states[shard_id] == _ShardState.PREPARING and not _is_alive(holder):
                raise ShardError(f"{self._name(shard_id)} was being prepared by process {holder}, which has died")

    def _failed(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._shard_states.numpy() == FAILED)

    def _failure_elsewhere(self) -> ShardError | None:
        names = ", ".join(self._name(shard) for shard in self._failed())
        said = f"{names} could not be read by another process of this machine; its error says why"
        return ShardError(said) if names else None

    def _raise_failure_elsewhere(self) -> None:
        failure = self._failure_elsewhere()
        if failure is not None:
            raise failure

    def _has_failed(self) -> bool:
        return hasattr(self, "_event") and self._event.is_set()

    def _is_ending(self) -> bool:
        return self._event.is_set() or self._iterator.should_exit()

    def _name(self, shard_id: int) -> str:
        """A shard's file where it is stored."""
        shard, source = self.shards[shard_id], self.streams[self.stream_per_shard[shard_id]].source
        stored = shard.zip_data or shard.raw_data
        return f"{source}/{stored.basename}" if source is not None else str(raw_path(shard))

    def _check_limit(self) -> None:
        largest = max((self.shards[shard].get_max_size() for shard in np.flatnonzero(self._in_cache)), default=0)
        if self.cache_limit is not None and self.cache_limit < 4 * largest:
            raise ValueError(
                f"data.cache_limit: {self.cache_limit} bytes hold less than four of the largest shards, of {largest} "
                f"bytes each (packed and unpacked); raise it to at least {4 * largest}b, better to what an epoch's "
                f"shuffle block of {SHUFFLE_BLOCK} samples takes"
            )

    def _note_what_is_there(self) -> None:
        """Nothing is trusted at the start: the first process that needs a shard prepares it, hash and all."""
        self.cache_usage = 0
        for shard_id, shard in enumerate(self.shards):
            self._shard_states[shard_id] = _ShardState.REMOTE
            present = bool(self._in_cache[shard_id]) and raw_path(shard).is_file()
            self._holders[shard_id] = PRESENT if present else ABSENT
            self.cache_usage += shard.get_raw_size() * present

    def _drop_what_a_fork_broke(self) -> None:
        if self._pid != os.getpid():
            self.__dict__ = self.__getstate__()
            self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in OF_ONE_PROCESS}


def _bytes(limit: str | None) -> int | None:
    try:
        return None if limit is None else bytes_to_int(limit)
    except ValueError:
        raise ValueError(f"data.cache_limit: {limit!r} is no size; expected one such as 200gb or 500mb") from None


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
