"""The table of all samples of a build: their hashes by position, and their ids on request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pargo_ds.data.building.chunk import DIGESTS


class SampleTable:
    """All samples of all chunks, in the order of the input. `rows` (samples,) has the type DIGESTS;
    `links` (links, 2) are pairs of hashes of images that belong to one sample.
    """

    def __init__(self, chunks: list[Path]) -> None:
        self.chunks = chunks
        parts = [np.load(chunk / "digests.npy", allow_pickle=False) for chunk in chunks]
        links = [np.load(chunk / "links.npy", allow_pickle=False) for chunk in chunks]
        self.links: NDArray[np.uint64] = np.concatenate([np.zeros((0, 2), np.uint64), *links])
        self.first = np.cumsum([0, *map(len, parts)])
        self.rows: NDArray[Any] = np.concatenate([np.zeros(0, DIGESTS), *parts])

    def names(self, positions: NDArray[np.int64]) -> Iterator[str]:
        """Yield the ids of the samples at `positions`, which must increase."""
        of_chunk = np.searchsorted(self.first, positions, side="right") - 1
        for number in np.unique(of_chunk).tolist():
            ids = [fields["id"] for fields in inputs_of(self.chunks[number])]
            for position in positions[of_chunk == number]:
                yield ids[self.rows["line"][position]]

    def span(self, number: int) -> range:
        """Return the positions of the samples of a chunk."""
        return range(int(self.first[number]), int(self.first[number + 1]))


def inputs_of(chunk: Path) -> Iterator[dict[str, Any]]:
    """Yield the record of each input of a chunk, in order."""
    with open(chunk / "inputs.jsonl", encoding="ascii") as lines:
        yield from map(json.loads, lines)
