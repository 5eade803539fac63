"""The shards of all chunks -> the shards of each split: moved as they are, or rewritten where samples go or change."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds.data.build_plan import HELD_OUT, TRAIN, WORK, BuildError, write_json
from pargo_ds.data.duplicates import Repeats
from pargo_ds.data.sample_table import SampleTable
from pargo_ds.data.schema import COLUMNS, pack_images
from pargo_ds.data.shards import INDEX_NAME, finish_shards, open_shards, read_index, read_sample, shard_writer

Rows = list[tuple[int, str | None]]
"""Rows of a shard folder, each with its new id or None."""


def index_notes(work: Path, name: str) -> Path:
    """Where the shards of a split are noted until its index is written."""
    return work / f"index-{name or 'all'}.json"


@dataclass
class SplitWriter:
    """Makes the splits of a data set in `out`. `held_out` (samples,) says which samples are held out."""

    table: SampleTable
    repeats: Repeats
    held_out: NDArray[np.bool_]
    plan: dict[str, Any]
    out: Path

    @property
    def work(self) -> Path:
        return self.out / WORK

    def write(self) -> dict[str, int]:
        """Put all shards into their places, note the index of each split; return samples by the split's folder name.

        What an earlier, killed call has done stays as it is. Raises BuildError when a shard is missing.
        """
        self._gather_held_out()
        chunks = enumerate(tqdm(self.table.chunks, desc="merging", unit="chunk", disable=None))
        folders = {TRAIN: [self._train_of(number, chunk) for number, chunk in chunks], HELD_OUT: [self.work / HELD_OUT]}
        counts = {}
        for split, sources in folders.items():
            name = "" if self.plan["held_out"] is None else split
            there = [folder for folder in sources if (folder / INDEX_NAME).is_file()]
            shards = [(folder, shard) for folder in there for shard in read_index(folder)["shards"]]
            if shards:
                target = self.out / name
                target.mkdir(exist_ok=True)
                moved = [_moved(folder, shard, number, target) for number, (folder, shard) in enumerate(shards)]
                write_json(index_notes(self.work, name), moved)
                counts[name] = sum(shard["samples"] for shard in moved)
        return counts

    def _stored_in(self, number: int, split: str) -> list[int]:
        """Positions of the samples in a chunk's folder of a split, in the order of its rows."""
        wanted = split == HELD_OUT
        return [position for position in self.table.span(number) if self.table.rows["held_out"][position] == wanted]

    def _rows(self, positions: list[int], held_out: bool) -> Rows:
        """The rows among those at `positions` that stay and belong to the split."""
        return [
            (row, self.repeats.renamed.get(position))
            for row, position in enumerate(positions)
            if position not in self.repeats.dropped and self.held_out[position] == held_out
        ]

    def _train_of(self, number: int, chunk: Path) -> Path:
        """The folder with a chunk's shards to train on: its own, or a new one when samples come, go or change."""
        stored = self._stored_in(number, TRAIN)
        rows = self._rows(stored, held_out=False)
        # Held out by its own pictures, but it hangs together with samples that are not.
        back = self._rows(self._stored_in(number, HELD_OUT), held_out=False)
        if len(rows) == len(stored) and not back and not any(name for _, name in rows):
            return chunk / TRAIN
        target = self.work / "edited" / chunk.name
        if not target.is_dir():
            wanted = [(chunk / TRAIN, rows), (chunk / HELD_OUT, back)]
            self._rewrite([(folder, chosen) for folder, chosen in wanted if chosen], target)
        return target

    def _gather_held_out(self) -> None:
        """Write the held-out samples of all chunks together: each chunk has only a few."""
        if (self.work / HELD_OUT).is_dir() or not self.held_out.any():
            return
        wanted = []
        for number, chunk in enumerate(self.table.chunks):
            for split in (TRAIN, HELD_OUT):
                rows = self._rows(self._stored_in(number, split), held_out=True)
                if rows:
                    wanted.append((chunk / split, rows))
        self._rewrite(wanted, self.work / HELD_OUT)

    def _rewrite(self, wanted: list[tuple[Path, Rows]], target: Path) -> None:
        """Write chosen rows of shard folders into a new folder: whole or absent."""
        aside = target.with_name(f".{target.name}.unfinished")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        if any(rows for _, rows in wanted):
            plan = self.plan
            writer = shard_writer(aside, plan["compression"], tuple(plan["hashes"]), plan["shard_bytes"])
            for folder, rows in wanted:
                dataset = open_shards(folder)
                for row, name in rows:
                    sample = read_sample(dataset, row)
                    stored = {column: getattr(sample, column) for column in COLUMNS}
                    writer.write({**stored, "id": name or sample.id, "images": pack_images(sample.images)})
            finish_shards(writer)
        aside.rename(target)


def _moved(folder: Path, shard: dict[str, Any], number: int, target: Path) -> dict[str, Any]:
    """Rename a shard file to its place in the one numbering; return its entry for the index."""
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
        raise BuildError(f"{kept} is missing: the unfinished build was damaged; delete {folder.parent}, build anew")
    return moved
