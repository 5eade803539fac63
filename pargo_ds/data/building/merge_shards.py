"""Collect the shards of all chunks into splits. Shards are moved unchanged, unless some of their
samples are left out, renamed or moved to the other split; those are rewritten.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds.data.building.duplicates import Repeats
from pargo_ds.data.building.plan import WORK, write_json
from pargo_ds.data.building.sample_table import SampleTable
from pargo_ds.data.shards.mds import (
    INDEX_NAME,
    finish_shards,
    open_shards,
    read_index,
    read_sample,
    shard_writer,
)
from pargo_ds.data.shards.schema import COLUMNS, pack_images
from pargo_ds.data.shards.splits import TRAIN, VALIDATION
from pargo_ds.errors import BuildError
from pargo_ds.files.whole_folder import folder_aside

Rows = list[tuple[int, str | None]]
"""Numbers of rows of a shard folder, each with the new id of its sample or None."""


def index_notes(work: Path, name: str) -> Path:
    """Return the file that holds the entries of a split's index until the index is written."""
    return work / f"index-{name or 'all'}.json"


@dataclass
class SplitWriter:
    """Writes the splits of a data set into `out`; `validation` (samples,) is the mask of the
    held-out samples.
    """

    table: SampleTable
    repeats: Repeats
    validation: NDArray[np.bool_]
    plan: dict[str, Any]
    out: Path

    @property
    def work(self) -> Path:
        """The folder of the unfinished build."""
        return self.out / WORK

    def write(self) -> dict[str, int]:
        """Move all shards to their places and note the entries of each split's index. Return the
        number of samples by the name of the split's folder.

        Work of an earlier call that was killed is kept. Raises BuildError when a shard is missing.
        """
        self._gather_validation()
        chunks = enumerate(tqdm(self.table.chunks, desc="merging", unit="chunk", disable=None))
        folders = {
            TRAIN: [self._train_of(number, chunk) for number, chunk in chunks],
            VALIDATION: [self.work / VALIDATION],
        }
        counts = {}
        for split, sources in folders.items():
            name = split
            if self.plan["validation"] is None:
                name = ""
            shards = _shards_in(sources)
            if shards:
                target = self.out / name
                target.mkdir(exist_ok=True)
                moved = []
                for number, (folder, shard) in enumerate(shards):
                    moved.append(_moved(folder, shard, number, target))
                write_json(index_notes(self.work, name), moved)
                counts[name] = sum(shard["samples"] for shard in moved)
        return counts

    def _stored_in(self, number: int, split: str) -> list[int]:
        """Positions of the samples that a chunk stores in a split's folder, in stored order."""
        span = self.table.span(number)
        of_split = self.table.rows["validation"][span.start : span.stop] == (split == VALIDATION)
        return (span.start + np.flatnonzero(of_split)).tolist()

    def _rows(self, positions: list[int], validation: bool) -> Rows:
        """The rows of a folder with the samples at `positions` that are kept and belong to the
        wanted split.
        """
        rows = []
        for row, position in enumerate(positions):
            if position not in self.repeats.dropped and self.validation[position] == validation:
                rows.append((row, self.repeats.renamed.get(position)))
        return rows

    def _train_of(self, number: int, chunk: Path) -> Path:
        """The folder with a chunk's training shards: the folder of the chunk, or a new one if
        samples are added, left out or renamed.
        """
        stored = self._stored_in(number, TRAIN)
        rows = self._rows(stored, validation=False)
        # Samples that the chunk held out, but that belong to a group which is not held out.
        back = self._rows(self._stored_in(number, VALIDATION), validation=False)
        if len(rows) == len(stored) and not back and not any(name for _, name in rows):
            return chunk / TRAIN
        target = self.work / "edited" / chunk.name
        if not target.is_dir():
            wanted = [(chunk / TRAIN, rows), (chunk / VALIDATION, back)]
            self._rewrite([(folder, chosen) for folder, chosen in wanted if chosen], target)
        return target

    def _gather_validation(self) -> None:
        """Write the held-out samples of all chunks into one folder, because each chunk has few."""
        if (self.work / VALIDATION).is_dir() or not self.validation.any():
            return
        wanted = []
        for number, chunk in enumerate(self.table.chunks):
            for split in (TRAIN, VALIDATION):
                rows = self._rows(self._stored_in(number, split), validation=True)
                if rows:
                    wanted.append((chunk / split, rows))
        self._rewrite(wanted, self.work / VALIDATION)

    def _rewrite(self, wanted: list[tuple[Path, Rows]], target: Path) -> None:
        """Write chosen rows of shard folders into a new folder, which is whole or absent."""
        plan, chosen = self.plan, [(folder, rows) for folder, rows in wanted if rows]
        with folder_aside(target) as aside:
            if not chosen:
                return  # a chunk whose samples have all gone is an empty folder
            writer = shard_writer(
                aside, plan["compression"], tuple(plan["hashes"]), plan["shard_bytes"]
            )
            for folder, rows in chosen:
                dataset = open_shards(folder)
                for row, name in rows:
                    sample = read_sample(dataset, row)
                    stored = {column: getattr(sample, column) for column in COLUMNS}
                    writer.write(
                        {**stored, "id": name or sample.id, "images": pack_images(sample.images)}
                    )
            finish_shards(writer)


def _shards_in(folders: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, index entry) of every shard; a folder without an index holds none."""
    found = []
    for folder in folders:
        if (folder / INDEX_NAME).is_file():
            found += [(folder, shard) for shard in read_index(folder).shards]
    return found


def _moved(folder: Path, shard: dict[str, Any], number: int, target: Path) -> dict[str, Any]:
    """Move a shard to its place among the numbered shards of a split; return its index entry."""
    moved = dict(shard)
    for data, ending in (("raw_data", "mds"), ("zip_data", f"mds.{shard['compression']}")):
        if shard[data]:
            name = f"shard.{number:05d}.{ending}"
            moved[data] = {**shard[data], "basename": name}
            stored = folder / shard[data]["basename"]
            if stored.is_file():  # else an earlier merge has moved it
                os.replace(stored, target / name)
    kept = target / (moved["zip_data"] or moved["raw_data"])["basename"]
    if not kept.is_file():
        raise BuildError(
            f"{kept} is missing: the unfinished build was damaged; delete {folder.parent}, build anew"
        )
    return moved
