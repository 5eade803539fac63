"""StreamingDataset as the engine that reads, with its silent faults turned into errors.

streaming 0.13 swallows an exception of its download thread: a damaged or missing shard ends the epoch early
with exit status 0, or leaves other workers waiting for ever. `SampleReader` makes each such fault a
`ShardError`. It also reads exactly the samples it is told to, in that order: which ones is decided by
`plan.py`, not by streaming's partition.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN, TICK
from streaming.base.dataset import _ShardState
from streaming.base.format import Reader
from streaming.base.hashing import get_hash, is_hash
from streaming.base.shared import _get_path
from streaming.base.shuffle import get_shuffle

from pargo_ds import distributed
from pargo_ds.data.shards import read_index

HASH = "xxh64"
FAILED = max(_ShardState) + 1
"""Our mark in streaming's shared array of shard states: some process could not read this shard."""
OWNER = "pargo_ds_owner"
OF_ONE_PROCESS = ("_executor", "_event", "_iterator", "_cache_filelock")
"""Threads and locks of a StreamingDataset: useless in another process, and made anew where they are missing."""
SHUFFLE_BLOCK = 1 << 18
"""Samples among which a shard's samples are spread (streaming's own lower limit)."""


class ShardError(RuntimeError):
    """A shard that cannot be read or is damaged; the message names its file."""


def epoch_order(items_per_shard: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """The shuffled order (items,) of one epoch: streaming's py1e, for one canonical node.

    It does not depend on ranks, nodes or workers, and spreads the items of a shard over SHUFFLE_BLOCK at most.
    """
    return get_shuffle("py1e", items_per_shard[items_per_shard > 0], 1, seed, epoch, SHUFFLE_BLOCK)


def shard_files(shard: Reader) -> list[Path]:
    """The file of a shard and, when it is compressed, first the packed one; either is enough to read it."""
    infos = [info for info in (shard.zip_data, shard.raw_data) if info is not None]
    return [Path(shard.dirname) / shard.split / info.basename for info in infos]


def check_shard(shard: Reader) -> None:
    """Compare a shard file with the hash in its index (no hash there: nothing to compare).

    streaming checks a hash only after a download, never for a file that is there already.

    Raises ShardError when they differ and OSError when the file cannot be read.
    """
    path, info = shard_files(shard)[-1], shard.raw_data
    algorithm = HASH if HASH in info.hashes else next(filter(is_hash, sorted(info.hashes)), None)
    if algorithm and get_hash(algorithm, path.read_bytes()) != info.hashes[algorithm]:
        raise ShardError(f"{path} is damaged: its {algorithm} hash is not the one in index.json; copy or write it anew")


class CheckedStream(Stream):
    """A stream that compares each shard with its hash before first use, also one that was there from the start."""

    def prepare_shard(self, shard: Reader) -> int:
        if self.remote is None and not any(path.is_file() for path in shard_files(shard)):
            raise ShardError(f"{shard_files(shard)[0]} is missing, though index.json names it; copy or write it anew")
        delta = super().prepare_shard(shard)
        check_shard(shard)
        return delta


class SampleReader(StreamingDataset):
    """Rows of a shard folder in the order given to `assign`; streaming's threads prepare the shards ahead.

    All ranks construct it together. `for row in reader` raises ShardError instead of ending early.

    Raises ValueError as `read_index` does, and when the launcher does not say how many ranks this machine runs.
    """

    def __init__(self, folder: str | Path) -> None:
        index = read_index(folder)
        stored = [shard["zip_data"] or shard["raw_data"] for shard in index["shards"]]
        hashed = bool(stored) and all(HASH in info["hashes"] for info in stored)
        _name_ranks_of_this_node()
        if distributed.local_rank() == 0:
            remove_stale_shared_memory()
        distributed.barrier()  # the constructor below looks for a free name in shared memory
        stream = CheckedStream(local=str(folder), validate_hash=HASH if hashed else None)
        super().__init__(streams=[stream], batch_size=1)
        self._work = np.zeros(0, np.int64)
        self._failure: ShardError | None = None
        self._pid = os.getpid()
        if self._unique_rank_world.is_local_leader:
            self._owner = _own_prefix(self._shm_prefix_int)
            # Present is not yet checked: the first process that needs a shard prepares it, hash and all.
            for shard in range(self.num_shards):
                self._shard_states[shard] = _ShardState.REMOTE
        distributed.barrier()

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
            if self._failure is None:
                raise
            raise self._failure from error  # streaming's error only says that a background thread failed
        finally:
            if hasattr(self, "_iterator"):
                self._iterator.non_blocking_exit()  # ends the threads when the caller stops early
        if read < len(self._work):
            raise self._failure or self._failed_elsewhere()

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        return self._work

    def _resume_incr_epoch(self) -> tuple[int, int]:
        # The plan knows the position. Without streaming's barrier a dead worker cannot block the others.
        return 0, 0

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """As streaming's, but a failure is kept for `__iter__` and marked for all processes of this machine."""
        try:
            super().prepare_shard(shard_id, blocking)
        except Exception as error:  # any reason: a thread must not lose it
            if isinstance(error, ShardError):
                failure = error
            elif self._shard_states[shard_id] == FAILED:  # streaming's error is "Invalid shard state: 4"
                failure = self._failed_elsewhere()
            else:
                failure = ShardError(f"{shard_files(self.shards[shard_id])[0]} cannot be read: {error}")
            self._failure = self._failure or failure  # before the mark, which the other threads look at
            self._shard_states[shard_id] = FAILED
            raise failure from error

    def _prepare_thread(self, it: Any) -> None:
        with _noted_exit(it):
            super()._prepare_thread(it)

    def _ready_thread(self, it: Any) -> None:
        # This thread waits for shards that other processes prepare, and would not notice their failure.
        self._executor.submit(self._watch_for_failures, it)
        with _noted_exit(it):
            super()._ready_thread(it)

    def _watch_for_failures(self, it: Any) -> None:
        states = self._shard_states.numpy()
        while not it.should_exit() and not self._event.is_set():
            if (states == FAILED).any():
                self._event.set()
            sleep(TICK)

    def _drop_what_a_fork_broke(self) -> None:
        if self._pid != os.getpid():
            self.__dict__ = self.__getstate__()
            self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in OF_ONE_PROCESS}

    def _failed_elsewhere(self) -> ShardError:
        failed = np.flatnonzero(self._shard_states.numpy() == FAILED)
        names = ", ".join(str(shard_files(self.shards[shard])[0]) for shard in failed)
        return ShardError(
            f"{names or 'a shard'} could not be read by another process of this machine; its error says why"
        )


@contextlib.contextmanager
def _noted_exit(it: Any) -> Iterator[None]:
    """Count a thread that ends in an error as ended; streaming does not, and waits for it for ever."""
    try:
        yield
    except BaseException:
        it.on_exit()
        raise


def _name_ranks_of_this_node() -> None:
    """streaming reads LOCAL_WORLD_SIZE, which torchrun sets; the deepspeed launcher calls it LOCAL_SIZE."""
    if "LOCAL_WORLD_SIZE" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if "LOCAL_SIZE" not in os.environ:
        raise ValueError(
            "LOCAL_WORLD_SIZE (ranks on this machine) is not set though WORLD_SIZE is; start with the deepspeed "
            "launcher or torchrun, or export it"
        )
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["LOCAL_SIZE"]


def _owner_path(prefix: int) -> Path:
    return Path(tempfile.gettempdir()) / _get_path(prefix, OWNER)


def _own_prefix(prefix: int) -> int:
    """Hold a lock that says "alive" for this prefix of shared memory; the system frees it even after SIGKILL.

    The file takes its name when it is locked already: another job's clean-up never finds it free.
    """
    descriptor, unnamed = tempfile.mkstemp(prefix="pargo_ds_")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.rename(unnamed, _owner_path(prefix))
    return descriptor


def remove_stale_shared_memory() -> None:
    """Remove shared memory and lock files that killed readers of ours left behind; those of live ones stay.

    streaming's own clean-up takes everything, running jobs included, and stops at the first gap.
    """
    for path in Path(tempfile.gettempdir()).glob(f"*_{OWNER}"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except (PermissionError, FileNotFoundError):  # another user's, or cleaned by another job just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its owner lives
            continue
        else:
            prefix = int(path.name.partition("_")[0])
            path.unlink(missing_ok=True)
            # streaming takes a prefix when all its names are free: what it looks for first goes last.
            for name in reversed(SHM_TO_CLEAN):
                (Path("/dev/shm") / _get_path(prefix, name)).unlink(missing_ok=True)
            for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
                (path.parent / _get_path(prefix, name)).unlink(missing_ok=True)
        finally:
            os.close(descriptor)
