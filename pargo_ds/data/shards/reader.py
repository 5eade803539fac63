"""Read rows of shards in a given order. Threads fetch shards ahead, and every error names a
shard.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

# shard_files.py imports streaming where it is needed, which takes seconds. Imported here, it is
# loaded before the workers are forked, so that no worker spends these seconds.
from streaming.base.util import bytes_to_int

from pargo_ds.data.shards.folder import ShardFolder
from pargo_ds.data.shards.shard_cache import ShardCache
from pargo_ds.data.shards.shard_files import shards_of
from pargo_ds.errors import ShardError

__all__ = ["SampleReader", "ShardError"]

FETCHERS = 2
"""Number of threads of each process that fetch and verify shards."""
SAMPLES_AHEAD = 512
"""Number of samples whose shards each worker fetches ahead of the sample that it reads."""
AHEAD_WITH_A_LIMIT = 8
"""The same number for a limited cache, where a worker that fetches far ahead would displace shards
that other workers are about to read.
"""


class SampleReader:
    """Reads rows of one or several folders of shards by their positions.

    Positions count the samples of all folders, one folder after another. All ranks and workers of a
    machine may read at the same time; each shard is fetched once for all of them.

    `cache_limit`, such as 200gb, is an upper bound for the shards in the cache. The shards that
    were not used for the longest time are deleted first; local folders are never changed.

    Raises ValueError when a folder occurs twice, when the limit is too small, and when there is a
    limit but no folder is in a cache.
    """

    def __init__(self, folders: Sequence[ShardFolder], cache_limit: str | None = None) -> None:
        if len({folder.local for folder in folders}) < len(folders):
            paths = ", ".join(folder.path for folder in folders)
            raise ValueError(f"a folder of shards comes twice: {paths}")
        if cache_limit is not None and all(folder.remote is None for folder in folders):
            raise ValueError(
                f"data.cache_limit: {cache_limit} would delete shards of {folders[0].path}, which "
                "are not in a cache; leave it out for folders that are read where they are"
            )
        self._arguments = (folders, cache_limit)
        shards = list(chain.from_iterable(map(shards_of, folders)))
        self._cache = ShardCache(shards, _bytes(cache_limit))
        self._starts = np.cumsum([0, *map(len, shards)])
        self._ahead = SAMPLES_AHEAD if cache_limit is None else AHEAD_WITH_A_LIMIT

    def __reduce__(self) -> tuple[Any, ...]:
        # For workers that are spawned and not forked.
        return SampleReader, self._arguments

    def __len__(self) -> int:
        """Number of samples of all folders."""
        return int(self._starts[-1])

    def rows(self, positions: NDArray[np.int64]) -> Generator[dict[str, Any], None, None]:
        """Yield the stored rows at `positions`, in this order (see `Sample.from_mds`).

        Raises ShardError when a shard is missing or damaged, or cannot be fetched.
        """
        shard_of = np.searchsorted(self._starts, positions, side="right") - 1
        places = (positions - self._starts[shard_of]).tolist()
        numbers = shard_of.tolist()
        fetched: dict[int, Future[None]] = {}
        ended, asked_for = threading.Event(), 0
        threads = ThreadPoolExecutor(FETCHERS)
        try:
            for at, (number, place) in enumerate(zip(numbers, places, strict=True)):
                for coming in numbers[asked_for : at + self._ahead]:
                    if coming not in fetched and not self._cache.is_ready(coming):
                        fetched[coming] = threads.submit(self._cache.prepare, coming, ended.is_set)
                asked_for = at + self._ahead
                if number in fetched:
                    fetched.pop(number).result()
                yield self._cache.row(number, place)
        finally:
            # Threads that still fetch a shard end soon; nobody has to wait for them.
            ended.set()
            threads.shutdown(wait=False, cancel_futures=True)


def _bytes(limit: str | None) -> int | None:
    if limit is None:
        return None
    try:
        return bytes_to_int(limit)
    except ValueError:
        problem = f"data.cache_limit: {limit!r} is no size; expected one such as 200gb or 500mb"
        raise ValueError(problem) from None
