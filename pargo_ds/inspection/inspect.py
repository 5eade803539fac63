"""Inspect a folder of shards before a GPU is used: statistics, some random samples, and
warnings.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds.data.conversation import conversations_of, encode_text
from pargo_ds.data.shards.folder import ShardFolder, open_folder
from pargo_ds.data.shards.reader import SampleReader
from pargo_ds.data.shards.schema import Sample, check_sample
from pargo_ds.data_sections import BatchSection, DataSection
from pargo_ds.errors import SampleError
from pargo_ds.inspection.shard_statistics import ShardStatistics
from pargo_ds.inspection.tables import Block
from pargo_ds.inspection.token_pieces import Piece, pieces
from pargo_ds.inspection.token_statistics import TokenStatistics

CHUNK = 4096
"""Number of samples that are read at a time."""
SHARDS_OF_A_LIMITED_LOOK = 16
"""With a limit, samples come from this number of shards of an object store, so that not all shards
are downloaded.
"""
MOST_FAULTS = 5


@dataclass(frozen=True)
class Encoding:
    """How a run encodes samples: its ParGoProcessor, and its settings of texts and packs."""

    processor: Any
    data: DataSection
    batch: BatchSection


@dataclass(frozen=True)
class ShownSample:
    """A sample, and for each of its conversations the pieces that training sees, or the reason why
    it cannot be encoded.
    """

    sample: Sample
    conversations: list[list[Piece] | str] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """All that is shown of a folder."""

    path: str
    samples: int
    """Number of samples in the folder."""
    looked_at: int
    blocks: list[Block]
    warnings: list[str]
    shown: list[ShownSample]


def inspect(
    path: str,
    encoding: Encoding | None = None,
    *,
    samples: int = 8,
    seed: int = 0,
    limit: int | None = None,
    cache: str | Path | None = None,
) -> Inspection:
    """Look at a folder of shards, local or in an object store.

    `samples` of those looked at are kept to be shown; `limit` bounds how many are looked at
    (default: all). Damaged samples are counted and told as a warning.

    Raises ValueError (StoreError) when the folder cannot be opened, ShardError when a shard cannot
    be read.
    """
    folder = open_folder(path, cache, "inspection")
    reader = SampleReader([folder])
    total = len(reader)
    positions = chosen_positions(np.diff(folder.starts), limit, seed, folder.remote is not None)
    shown_at = set(random.Random(seed).sample(range(len(positions)), min(samples, len(positions))))
    statistics: list[ShardStatistics | TokenStatistics] = [ShardStatistics()]
    if encoding:
        statistics.append(TokenStatistics(encoding.processor, encoding.data, encoding.batch))
    shown, faults, damaged = [], [], 0
    for number, sample in enumerate(_samples(reader, positions, folder)):
        if isinstance(sample, SampleError):
            damaged += 1
            if damaged <= MOST_FAULTS:
                faults.append(str(sample))
            continue
        for counted in statistics:
            counted.add(sample)
        if number in shown_at:
            shown.append(ShownSample(sample, _conversations(sample, encoding)))
    warnings: list[str] = []
    blocks: list[Block] = []
    if damaged:
        warnings.append(f"{damaged:,} damaged samples: {'; '.join(faults)}")
    for counted in statistics:
        warnings += counted.warnings()
        blocks += counted.blocks()
    return Inspection(path, total, len(positions), blocks, warnings, shown)


def chosen_positions(
    samples_per_shard: NDArray[np.int64], limit: int | None, seed: int, few_shards: bool
) -> NDArray[np.int64]:
    """Return the positions to inspect, ascending: all, or `limit` random ones. With `few_shards`
    they come from a few shards only.

    `samples_per_shard` is (shards,).
    """
    total = int(samples_per_shard.sum())
    if limit is None or limit >= total:
        return np.arange(total)
    draw = np.random.default_rng(seed)
    if not few_shards:
        return np.sort(draw.choice(total, limit, replace=False))
    offsets = np.concatenate([[0], np.cumsum(samples_per_shard)])
    order = draw.permutation(len(samples_per_shard))
    enough = int(np.searchsorted(np.cumsum(samples_per_shard[order]), limit)) + 1
    shards = order[: max(enough, min(SHARDS_OF_A_LIMITED_LOOK, len(order)))]
    there = np.concatenate([np.arange(offsets[shard], offsets[shard + 1]) for shard in shards])
    return np.sort(draw.choice(there, limit, replace=False))


def _samples(
    reader: SampleReader, positions: NDArray[np.int64], folder: ShardFolder
) -> Iterator[Sample | SampleError]:
    """Yield each sample at these positions in order, or the error that describes its fault. A
    progress bar is shown on a terminal.
    """
    with tqdm(
        total=len(positions), desc=f"looking at {folder.path}", unit="sample", disable=None
    ) as bar:
        for first in range(0, len(positions), CHUNK):
            for row in reader.rows(positions[first : first + CHUNK]):
                bar.update()
                try:
                    sample = Sample.from_mds(row)
                    check_sample(sample)  # completely, although it was checked when it was written
                    yield sample
                except SampleError as error:
                    yield error


def _conversations(sample: Sample, encoding: Encoding | None) -> list[list[Piece] | str]:
    if encoding is None:
        return []
    try:
        conversations = conversations_of(sample, encoding.data)
    except SampleError as error:
        return [str(error)]
    found: list[list[Piece] | str] = []
    for turns in conversations:
        try:
            ids, labels = encode_text(sample, turns, encoding.processor)
            found.append(pieces(ids, labels, encoding.processor))
        except SampleError as error:
            found.append(str(error))
    return found
