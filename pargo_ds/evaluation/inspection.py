"""A folder of shards, looked at before a GPU is: statistics, some samples drawn by chance, and what smells."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.conversation import encode_text, views
from pargo_ds.data.reader import SampleReader
from pargo_ds.data.schema import Sample, SampleError
from pargo_ds.data.stores import ShardFolder, open_folder
from pargo_ds.evaluation.shard_statistics import ShardStatistics
from pargo_ds.evaluation.tables import Block
from pargo_ds.evaluation.token_pieces import Piece, pieces
from pargo_ds.evaluation.token_statistics import TokenStatistics

CHUNK = 4096
"""Samples that are read at a time."""
SHARDS_OF_A_LIMITED_LOOK = 16
"""With a limit, samples come from so many shards of an object store, so that not all of them are downloaded."""
MOST_FAULTS = 5


@dataclass(frozen=True)
class Encoding:
    """A run's way with samples: its ParGoProcessor, and the settings of texts and packs."""

    processor: Any
    data: DataSection
    batch: BatchSection


@dataclass(frozen=True)
class ShownSample:
    """A sample and what training makes of it: pieces of each conversation, or the reason why there is none."""

    sample: Sample
    conversations: list[list[Piece] | str] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """All that is shown."""

    path: str
    samples: int
    """In the folder."""
    looked_at: int
    blocks: list[Block]
    smells: list[str]
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

    `samples` of those looked at are kept to be shown; `limit` bounds how many are looked at (default: all). Damaged
    samples are counted and told as a warning.

    Raises ValueError (StoreError) when the folder cannot be opened, ShardError when a shard cannot be read.
    """
    folder = open_folder(path, cache, "inspection")
    reader = SampleReader([folder])
    total = int(reader.sample_offset_per_folder[-1])
    positions = chosen_positions(np.asarray(reader.samples_per_shard), limit, seed, folder.remote is not None)
    shown_at = set(random.Random(seed).sample(range(len(positions)), min(samples, len(positions))))
    statistics = ShardStatistics()
    tokens = TokenStatistics(encoding.processor, encoding.data, encoding.batch) if encoding else None
    shown, faults, damaged = [], [], 0
    for number, sample in enumerate(_samples(reader, positions, folder)):
        if isinstance(sample, SampleError):
            damaged += 1
            faults += [str(sample)] if damaged <= MOST_FAULTS else []
            continue
        statistics.add(sample)
        if tokens is not None:
            tokens.add(sample)
        if number in shown_at:
            shown.append(ShownSample(sample, _conversations(sample, encoding) if encoding else []))
    smells = [f"{damaged:,} damaged samples: {'; '.join(faults)}"] if damaged else []
    smells += statistics.smells() + (tokens.smells() if tokens else [])
    blocks = statistics.blocks() + (tokens.blocks() if tokens else [])
    return Inspection(path, total, len(positions), blocks, smells, shown)


def chosen_positions(
    samples_per_shard: NDArray[np.int64], limit: int | None, seed: int, few_shards: bool
) -> NDArray[np.int64]:
    """Positions to look at, ascending: all, or `limit` drawn by chance; `few_shards` takes them from some shards only.

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


def _samples(reader: SampleReader, positions: NDArray[np.int64], folder: ShardFolder) -> Iterator[Sample | SampleError]:
    """Every sample at these positions in order, or what is wrong with it; with a progress bar on a terminal."""
    with tqdm(total=len(positions), desc=f"looking at {folder.path}", unit="sample", disable=None) as bar:
        for first in range(0, len(positions), CHUNK):
            reader.assign(positions[first : first + CHUNK])
            for row in reader:
                bar.update()
                try:
                    yield Sample.from_mds(row)
                except SampleError as error:
                    yield error


def _conversations(sample: Sample, encoding: Encoding) -> list[list[Piece] | str]:
    try:
        conversations = views(sample, encoding.data)
    except SampleError as error:
        return [str(error)]
    found: list[list[Piece] | str] = []
    for turns in conversations:
        try:
            found.append(pieces(*encode_text(sample, turns, encoding.processor), encoding.processor))
        except SampleError as error:
            found.append(str(error))
    return found
