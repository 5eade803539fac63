"""Reading through a SampleReader in tests: small shards, the ids of their rows, and faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pargo_ds.data.shards.mds import write_shards
from pargo_ds.data.shards.reader import SampleReader
from pargo_ds.data.shards.schema import Sample


def make_samples(count: int, first: int = 0) -> list[Sample]:
    numbers = range(first, first + count)
    return [
        Sample(id=f"s{n}", images=[bytes([n % 256]) * 500], captions={"coarse": f"Number {n}."})
        for n in numbers
    ]


def write(folder: Path, count: int, first: int = 0, **options: Any) -> Path:
    write_shards(make_samples(count, first), folder, shard_bytes=4000, **options)
    return folder


def read(reader: SampleReader, positions: NDArray[np.int64]) -> list[str]:
    return [row["id"] for row in reader.rows(positions)]


def names(positions: NDArray[np.int64]) -> list[str]:
    return [f"s{position}" for position in positions]


class Rows(IterableDataset):
    """Ids of the rows at these positions; each worker reads every n-th."""

    def __init__(
        self, reader: SampleReader, positions: NDArray[np.int64], pause_s: float = 0.0
    ) -> None:
        self.reader, self.positions, self.pause_s = reader, positions, pause_s

    def __iter__(self) -> Iterator[str]:
        info = get_worker_info()
        mine = self.positions if info is None else self.positions[info.id :: info.num_workers]
        for row in self.reader.rows(mine):
            time.sleep(self.pause_s)
            yield row["id"]


def read_all(loader: DataLoader) -> list[str]:
    """All rows; the workers end at once, which they do not when an error is garbage-collected with
    their queues.
    """
    rows = iter(loader)
    try:
        return list(rows)
    finally:
        if loader.num_workers:
            rows._shutdown_workers()


def damage(path: Path, fault: str) -> None:
    content = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
