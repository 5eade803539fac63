"""Plain reading of single shards of a folder, here or in an object store: for measuring, and for samples by position.

Nothing is shuffled or fetched ahead, and nothing stays in the cache: a shard that is not read where it is lies in a
temporary folder while it is open. `streaming` is imported inside the functions, because its import takes seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pargo_ds.data.shards import read_index
from pargo_ds.data.stores import ShardFolder

if TYPE_CHECKING:
    from streaming.base.format import Reader


@contextmanager
def opened_shard(folder: ShardFolder, info: dict[str, Any]) -> Iterator[Reader]:
    """The rows of one shard, compared with its hash; `info` is its entry in index.json.

    Raises ShardError when it is missing or damaged, StoreError when the store fails.
    """
    from streaming.base.format import reader_from_json

    from pargo_ds.data.shard_files import ShardError, check_shard, fetch_shard, raw_path

    if folder.remote is None:
        shard = reader_from_json(str(folder.local), None, info)
        if not raw_path(shard).is_file():
            raise ShardError(f"{raw_path(shard)} is missing, though index.json names it; copy or write it anew")
        check_shard(shard)
        yield shard
        return
    with tempfile.TemporaryDirectory(prefix="pargo_ds_shard_") as aside:
        shard = reader_from_json(aside, None, info)
        fetch_shard(shard, folder.remote, lambda: False)
        yield shard


def shard_starts(folder: ShardFolder) -> NDArray[np.int64]:
    """(shards + 1,) position of each shard's first sample in the folder, and the number of all samples."""
    return np.cumsum([0, *(shard["samples"] for shard in read_index(folder.local)["shards"])])


def rows_at(folder: ShardFolder, positions: Sequence[int]) -> list[dict[str, Any]]:
    """The stored rows at these positions (see `Sample.from_mds`), each shard opened once. Raises as `opened_shard`."""
    infos, starts = read_index(folder.local)["shards"], shard_starts(folder)
    shard_of = np.searchsorted(starts, positions, side="right") - 1
    found: dict[int, dict[str, Any]] = {}
    for number in sorted(set(shard_of.tolist())):
        with opened_shard(folder, infos[number]) as shard:
            for position in {at for at, of in zip(positions, shard_of, strict=True) if of == number}:
                found[position] = shard[position - int(starts[number])]
    return [found[position] for position in positions]
