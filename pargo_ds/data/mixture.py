"""The streams of a run as one numbered set of items: how long each is, where its sample lies, and an epoch's plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pargo_ds.config import BatchSection, DataSection, StreamSection
from pargo_ds.data.conversation import text_settings
from pargo_ds.data.lengths import Lengths, index_hash, load_lengths, within_budget
from pargo_ds.data.one_shard import shard_starts
from pargo_ds.data.order import epoch_order, repeats_per_epoch
from pargo_ds.data.plan import PLAN_VERSION, Budget, Plan, make_plan
from pargo_ds.data.stores import ShardFolder, open_folder


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One folder of shards in the mixture."""

    section: StreamSection
    folder: ShardFolder
    data: DataSection
    """The data section with the texts of this stream."""
    lengths: Lengths
    skipped: int
    """Conversations left out because they do not fit into a pack."""

    def items_per_shard(self) -> NDArray[np.int64]:
        """(shards,)"""
        return np.diff(self.lengths.items_before(shard_starts(self.folder)))


class Mixture:
    """Streams whose items are numbered one stream after another."""

    def __init__(
        self, streams: list[Stream], data: DataSection, batch: BatchSection, seed: int, padded_rows: bool = False
    ) -> None:
        self.streams, self.data, self.seed = streams, data, seed
        self.budget = Budget(**batch.model_dump(), padded_rows=padded_rows)
        self.offsets = np.cumsum([0, *(len(stream.lengths) for stream in streams)])
        """(streams + 1,) number of each stream's first item."""
        self.folders = list({stream.folder.local: stream.folder for stream in streams}.values())
        """Each folder once, though several streams may read it."""
        self._folder_of_stream = [self.folders.index(stream.folder) for stream in streams]

    @property
    def skipped(self) -> int:
        return sum(stream.skipped for stream in self.streams)

    @property
    def refused(self) -> int:
        return sum(stream.lengths.refused for stream in self.streams)

    def counts(self, items: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens (those of pictures included) and pictures of these items: the plan's lookup."""
        if len(self.streams) == 1:
            return self.streams[0].lengths.counts(items)
        tokens, pictures = np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
        for stream, here, own in self._by_stream(items):
            tokens[here], pictures[here] = self.streams[stream].lengths.counts(own)
        return tokens, pictures

    def positions(self, items: NDArray[np.uint32], offset_per_folder: NDArray[np.int64]) -> NDArray[np.int64]:
        """Global positions of the items' samples in a reader of `folders`, whose offsets are given."""
        positions = np.zeros(len(items), np.int64)
        for stream, here, own in self._by_stream(items):
            samples, _ = self.streams[stream].lengths.conversations(own)
            positions[here] = samples + offset_per_folder[self._folder_of_stream[stream]]
        return positions

    def conversation(self, item: int) -> tuple[Stream, int, int]:
        """The stream of an item, which of its sample's conversations it is, and its tokens."""
        number = int(np.searchsorted(self.offsets, item, side="right")) - 1
        stream, own = self.streams[number], np.array([item - self.offsets[number]])
        return stream, int(stream.lengths.conversations(own)[1][0]), int(stream.lengths.counts(own)[0][0])

    def order(self, epoch: int) -> list[NDArray[np.uint32]]:
        """The items of one epoch in order, for each canonical node."""
        sections = [stream.section for stream in self.streams]
        items = np.diff(self.offsets).tolist()
        repeats = repeats_per_epoch(
            items, [one.repeat for one in sections], [one.weight for one in sections], self.data.epoch_items
        )
        return epoch_order(
            [stream.items_per_shard() for stream in self.streams],
            repeats,
            seed=self.seed,
            epoch=epoch,
            canonical_nodes=self.data.canonical_nodes,
        )

    def plan(self, epoch: int) -> Plan:
        """The plan of one epoch, the same on every rank."""
        return make_plan(self.order(epoch), self.counts, self.budget, seed=self.seed, epoch=epoch)

    def fingerprint(self, processor: Any) -> dict[str, Any]:
        """Everything that decides the stream, by the names that stand in the run file where there is one.

        Streams are known by what their shards hold, not by where they lie; ranks, workers and caches are not in it.
        """
        parts = {
            "plan": PLAN_VERSION,
            "seed": self.seed,
            "processor": processor.fingerprint(),
            **{f"data.{name}": getattr(self.data, name) for name in ("too_long", "canonical_nodes", "epoch_items")},
            **{f"batch.{name}": value for name, value in self.budget.__dict__.items()},
        }
        for number, stream in enumerate(self.streams):
            share = (
                {"weight": stream.section.weight} if stream.section.weight else {"repeat": stream.section.repeat or 1}
            )
            own = {"shards": index_hash(stream.folder), **share, **text_settings(stream.data)}
            parts |= {f"data.train[{number}].{name}": value for name, value in own.items()}
        return parts

    def _by_stream(self, items: NDArray[np.uint32]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(stream, places in `items`, numbers within the stream) for each stream that has some."""
        stream_of = np.searchsorted(self.offsets, items, side="right") - 1
        found = []
        for stream in np.unique(stream_of).tolist():
            here = np.flatnonzero(stream_of == stream)
            found.append((stream, here, items[here].astype(np.int64) - self.offsets[stream]))
        return found


def open_mixture(
    data: DataSection,
    batch: BatchSection,
    processor: Any,
    *,
    seed: int,
    cache_dir: str | Path,
    run_name: str = "",
    padded_rows: bool = False,
) -> Mixture:
    """Open the streams of data.train and load their lengths; all ranks call it together.

    `padded_rows`: the LLM pads the samples of a pack to rows of equal length, and packs are planned for it.

    Raises as `open_folder`, `load_lengths` and `within_budget`.
    """
    streams = []
    for section in data.train:
        texts = data.of_stream(section)
        folder = open_folder(section.path, data.cache, run_name)
        measured = load_lengths(folder, texts, processor, cache_dir)
        lengths, skipped = within_budget(measured, batch, texts, folder)
        streams.append(Stream(section=section, folder=folder, data=texts, lengths=lengths, skipped=skipped))
    return Mixture(streams, data, batch, seed, padded_rows)
