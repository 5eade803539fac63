"""The streams of a run as one numbered set of items: how long each is, where its sample lies, and
an epoch's plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pargo_ds.batch import ConversationEncoder
from pargo_ds.data.conversation import text_settings
from pargo_ds.data.packing.lengths import Lengths, load_lengths, within_budget
from pargo_ds.data.packing.order import epoch_order, repeats_per_epoch
from pargo_ds.data.packing.packs import Budget
from pargo_ds.data.packing.plan import PLAN_VERSION, Plan, make_plan
from pargo_ds.data.shards.folder import ShardFolder, open_folder
from pargo_ds.data_sections import BatchSection, DataSection, StreamSection


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
        """Return (shards,)"""
        return np.diff(self.lengths.items_before(self.folder.starts))


class Mixture:
    """Streams whose items are numbered one stream after another."""

    def __init__(
        self,
        streams: list[Stream],
        data: DataSection,
        batch: BatchSection,
        seed: int,
        padded_rows: bool = False,
    ) -> None:
        self.streams, self.data, self.seed = streams, data, seed
        self.budget = Budget(
            **batch.model_dump(exclude={"packs_per_forward"}), padded_rows=padded_rows
        )
        self.offsets = np.cumsum([0, *(len(stream.lengths) for stream in streams)])
        """(streams + 1,) number of each stream's first item."""
        self.folders = list({stream.folder.local: stream.folder for stream in streams}.values())
        """Each folder once, though several streams may read it."""
        folder_of_stream = [self.folders.index(stream.folder) for stream in streams]
        before = np.cumsum([0, *(folder.starts[-1] for folder in self.folders)])
        self._first_positions = before[folder_of_stream]
        """(streams,) position of each stream's first sample, counted through `folders`."""

    @property
    def skipped(self) -> int:
        """How many conversations are left out because they do not fit into a pack."""
        return sum(stream.skipped for stream in self.streams)

    @property
    def refused(self) -> int:
        """How many samples are left out because no conversation can be made of them."""
        return sum(stream.lengths.refused for stream in self.streams)

    def counts(self, items: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tokens (those of images included) and images of these items: the plan's
        lookup.
        """
        if len(self.streams) == 1:
            return self.streams[0].lengths.counts(items)
        tokens, images = np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
        for stream, here, own in self._by_stream(items):
            tokens[here], images[here] = self.streams[stream].lengths.counts(own)
        return tokens, images

    def positions(self, items: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the positions of the items' samples, counted through all `folders` as a
        SampleReader does.
        """
        positions = np.zeros(len(items), np.int64)
        for stream, here, own in self._by_stream(items):
            samples, _ = self.streams[stream].lengths.conversations(own)
            positions[here] = samples + self._first_positions[stream]
        return positions

    def conversations(self, items: NDArray[np.uint32]) -> list[tuple[Stream, int, int]]:
        """Return for each item its stream, which of its sample's conversations it is, and its
        tokens.
        """
        streams, views = np.zeros(len(items), np.int64), np.zeros(len(items), np.int64)
        for stream, here, own in self._by_stream(items):
            streams[here] = stream
            _, views[here] = self.streams[stream].lengths.conversations(own)
        tokens, _ = self.counts(items)
        found = zip(streams.tolist(), views.tolist(), tokens.tolist(), strict=True)
        return [(self.streams[stream], view, count) for stream, view, count in found]

    def order(self, epoch: int) -> list[NDArray[np.uint32]]:
        """Return the items of one epoch in order, for each canonical node."""
        sections = [stream.section for stream in self.streams]
        items = np.diff(self.offsets).tolist()
        repeats = repeats_per_epoch(
            items,
            [one.repeat for one in sections],
            [one.weight for one in sections],
            self.data.epoch_items,
        )
        return epoch_order(
            [stream.items_per_shard() for stream in self.streams],
            repeats,
            seed=self.seed,
            epoch=epoch,
            canonical_nodes=self.data.canonical_nodes,
        )

    def plan(self, epoch: int) -> Plan:
        """Return the plan of one epoch, the same on every rank."""
        return make_plan(
            self.order(epoch),
            self.counts,
            self.budget,
            seed=self.seed,
            epoch=epoch,
            stream_starts=self.offsets[:-1].tolist(),
        )

    def fingerprint(self, processor: ConversationEncoder) -> dict[str, Any]:
        """Return everything that decides the stream, by the names that stand in the run file where
        there is one.

        Streams are known by what their shards hold, not by where they lie; ranks, workers and
        caches are not in it.
        """
        parts = {
            "plan": PLAN_VERSION,
            "seed": self.seed,
            "processor": processor.fingerprint(),
            "data.too_long": self.data.too_long,
            "data.canonical_nodes": self.data.canonical_nodes,
            "data.epoch_items": self.data.epoch_items,
            **{f"batch.{name}": value for name, value in self.budget.__dict__.items()},
        }
        for number, stream in enumerate(self.streams):
            own: dict[str, Any] = {"shards": stream.folder.index_sha256}
            if stream.section.weight:
                own["weight"] = stream.section.weight
            else:
                own["repeat"] = stream.section.repeat or 1
            own |= text_settings(stream.data)
            parts |= {f"data.train[{number}].{name}": value for name, value in own.items()}
        return parts

    def _by_stream(
        self, items: NDArray[np.uint32]
    ) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
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
    processor: ConversationEncoder,
    *,
    seed: int,
    cache_dir: str | Path,
    run_name: str = "",
    padded_rows: bool = False,
) -> Mixture:
    """Open the streams of data.train and load their lengths; all ranks call it together.

    `padded_rows`: the LLM pads the samples of a pack to rows of equal length, and packs are planned
    for it.

    Raises as `open_folder`, `load_lengths` and `within_budget`.
    """
    streams = []
    for section in data.train:
        texts = data.of_stream(section)
        folder = open_folder(section.path, data.cache, run_name)
        measured = load_lengths(folder, texts, processor, cache_dir)
        lengths, skipped = within_budget(measured, batch, texts, folder)
        streams.append(
            Stream(section=section, folder=folder, data=texts, lengths=lengths, skipped=skipped)
        )
    return Mixture(streams, data, batch, seed, padded_rows)
