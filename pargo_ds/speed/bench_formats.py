"""The same images in each loader's own format, and a stream of their bytes from each loader's own
reader.

WebDataset and LitData are optional; `missing` says how to install one that is not there. All read
local, uncompressed files; ours compares hashes and reads in a shuffled order, as training does, the
others in the stored one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from pargo_ds.data.loader import CHUNK_SAMPLES
from pargo_ds.data.shards.folder import open_folder
from pargo_ds.data.shards.mds import write_shards
from pargo_ds.data.shards.reader import SampleReader
from pargo_ds.data.shards.schema import Sample

CAPTION = "a photograph, cut at random"
BYTES_PER_FILE = 1 << 26
BATCH = 32
INSTALL = {
    "webdataset": "pip install --target FOLDER --no-deps webdataset braceexpand, then PYTHONPATH=FOLDER",
    "litdata": "pip install --target FOLDER --no-deps litdata lightning-utilities, then PYTHONPATH=FOLDER",
}
Decode = Callable[[bytes], Any]


def missing(name: str) -> str | None:
    """Return how to get a format's package that is not installed; None when it is there."""
    if name not in INSTALL or importlib.util.find_spec(name) is not None:
        return None
    return INSTALL[name]


# Writing


def write_mds(images: Sequence[bytes], folder: Path) -> None:
    """Write our shards."""
    write_shards(map(_sample, range(len(images)), images), folder, shard_bytes=BYTES_PER_FILE)


def _sample(number: int, image: bytes) -> Sample:
    return Sample(id=f"{number:06}", images=[image], captions={"coarse": CAPTION})


def write_webdataset(images: Sequence[bytes], folder: Path) -> None:
    """Write tars with the images and their captions."""
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(
        str(folder / "%05d.tar"), maxsize=BYTES_PER_FILE, verbose=0
    ) as writer:
        for number, image in enumerate(images):
            writer.write({"__key__": f"{number:06}", "jpg": image, "json": {"caption": CAPTION}})


def write_litdata(images: Sequence[bytes], folder: Path) -> None:
    """Write litdata's chunks."""
    import litdata

    # it prints; and its own choice, spawn, would become the start method of this process
    with contextlib.redirect_stdout(sys.stderr):
        litdata.optimize(
            fn=partial(_litdata_item, images),
            inputs=list(range(len(images))),
            output_dir=str(folder),
            chunk_bytes=BYTES_PER_FILE,
            num_workers=1,
            start_method="fork",
            verbose=False,
        )


def _litdata_item(images: Sequence[bytes], number: int) -> dict[str, Any]:
    return {"key": f"{number:06}", "jpg": images[number], "caption": CAPTION}


WRITERS = {"mds": write_mds, "webdataset": write_webdataset, "litdata": write_litdata}


# Reading


class Images(IterableDataset):
    """Our shards as training reads them: SampleReader, chunk by chunk, in a shuffled order."""

    def __init__(self, reader: SampleReader, decode: Decode) -> None:
        self.reader, self.decode = reader, decode

    def __iter__(self) -> Iterator[Any]:
        order = np.random.default_rng(0).permutation(len(self.reader))
        for first in range(0, len(order), CHUNK_SAMPLES):
            for row in self.reader.rows(order[first : first + CHUNK_SAMPLES]):
                yield _clocked(self.decode, Sample.from_mds(row).images[0])


def open_mds(folder: Path) -> Callable[[Decode], DataLoader]:
    """Return what starts a loader of our shards, given how images are decoded."""
    reader = SampleReader([open_folder(folder)])
    return lambda decode: _loader(Images(reader, decode))


def open_webdataset(folder: Path) -> Callable[[Decode], DataLoader]:
    """Return what starts a loader of the tars, given how images are decoded."""
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))

    def start(decode: Decode) -> DataLoader:
        dataset = webdataset.WebDataset(files, shardshuffle=False)
        return _loader(dataset.map(lambda sample: _clocked(decode, sample["jpg"])))

    return start


def open_litdata(folder: Path) -> Callable[[Decode], DataLoader]:
    """Return what starts a loader of litdata's chunks, given how images are decoded."""
    import litdata

    def start(decode: Decode) -> DataLoader:
        dataset = litdata.StreamingDataset(
            str(folder), transform=lambda sample: _clocked(decode, sample["jpg"])
        )
        return _loader(dataset, litdata.StreamingDataLoader)

    return start


def _loader(dataset: Any, kind: type[DataLoader] = DataLoader) -> DataLoader:
    """One worker; batches of BATCH images, stacked when decoded, as `_collate` gives them."""
    return kind(dataset, batch_size=BATCH, num_workers=1, collate_fn=_collate)


def _clocked(decode: Decode, data: bytes) -> tuple[Any, float]:
    """The image, and the CPU seconds that the worker, with all its threads, has used so far."""
    return decode(data), time.process_time()


def _collate(clocked: list[tuple[Any, float]]) -> tuple[Any, int, float]:
    """(images, how many, CPU seconds of the worker)."""
    images = [image for image, _ in clocked]
    together = torch.stack(images) if isinstance(images[0], torch.Tensor) else images
    return together, len(images), clocked[-1][1]


OPENERS = {"mds": open_mds, "webdataset": open_webdataset, "litdata": open_litdata}
