"""The same pictures in each loader's own format, and a stream of their bytes from each loader's own reader.

WebDataset and LitData are optional; `missing` says how to install one that is not there. All read local, uncompressed
files; ours compares hashes and reads in a shuffled order, as training does, the others in the stored one.
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
from pargo_ds.data.reader import SampleReader
from pargo_ds.data.schema import Sample
from pargo_ds.data.shards import write_shards
from pargo_ds.data.stores import open_folder

CAPTION = "a photograph, cut at random"
BYTES_PER_FILE = 1 << 26
BATCH = 32
INSTALL = {
    "webdataset": "pip install --target FOLDER --no-deps webdataset braceexpand, then PYTHONPATH=FOLDER",
    "litdata": "pip install --target FOLDER --no-deps litdata lightning-utilities, then PYTHONPATH=FOLDER",
}
Decode = Callable[[bytes], Any]


def missing(name: str) -> str | None:
    """How to get a format's package that is not installed; None when it is there."""
    return INSTALL[name] if name in INSTALL and importlib.util.find_spec(name) is None else None


# Writing


def write_mds(pictures: Sequence[bytes], folder: Path) -> None:
    write_shards(
        (
            Sample(id=f"{number:06}", images=[picture], captions={"coarse": CAPTION})
            for number, picture in enumerate(pictures)
        ),
        folder,
        shard_bytes=BYTES_PER_FILE,
    )


def write_webdataset(pictures: Sequence[bytes], folder: Path) -> None:
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxsize=BYTES_PER_FILE, verbose=0) as writer:
        for number, picture in enumerate(pictures):
            writer.write({"__key__": f"{number:06}", "jpg": picture, "json": {"caption": CAPTION}})


def write_litdata(pictures: Sequence[bytes], folder: Path) -> None:
    import litdata

    # it prints; and its own choice, spawn, would become the start method of this process
    with contextlib.redirect_stdout(sys.stderr):
        litdata.optimize(
            fn=partial(_litdata_item, pictures),
            inputs=list(range(len(pictures))),
            output_dir=str(folder),
            chunk_bytes=BYTES_PER_FILE,
            num_workers=1,
            start_method="fork",
            verbose=False,
        )


def _litdata_item(pictures: Sequence[bytes], number: int) -> dict[str, Any]:
    return {"key": f"{number:06}", "jpg": pictures[number], "caption": CAPTION}


WRITERS = {"mds": write_mds, "webdataset": write_webdataset, "litdata": write_litdata}


# Reading


class Pictures(IterableDataset):
    """Our shards as training reads them: SampleReader, chunk by chunk, in a shuffled order."""

    def __init__(self, reader: SampleReader, decode: Decode) -> None:
        self.reader, self.decode = reader, decode

    def __iter__(self) -> Iterator[Any]:
        order = np.random.default_rng(0).permutation(int(self.reader.sample_offset_per_folder[-1]))
        for first in range(0, len(order), CHUNK_SAMPLES):
            self.reader.assign(order[first : first + CHUNK_SAMPLES])
            for row in self.reader:
                yield _clocked(self.decode, Sample.from_mds(row).images[0])


def open_mds(folder: Path) -> Callable[[Decode], DataLoader]:
    reader = SampleReader([open_folder(folder)])
    return lambda decode: _loader(Pictures(reader, decode))


def open_webdataset(folder: Path) -> Callable[[Decode], DataLoader]:
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))

    def start(decode: Decode) -> DataLoader:
        dataset = webdataset.WebDataset(files, shardshuffle=False)
        return _loader(dataset.map(lambda sample: _clocked(decode, sample["jpg"])))

    return start


def open_litdata(folder: Path) -> Callable[[Decode], DataLoader]:
    import litdata

    def start(decode: Decode) -> DataLoader:
        dataset = litdata.StreamingDataset(str(folder), transform=lambda sample: _clocked(decode, sample["jpg"]))
        return _loader(dataset, litdata.StreamingDataLoader)

    return start


def _loader(dataset: Any, kind: type[DataLoader] = DataLoader) -> DataLoader:
    """One worker; batches of BATCH pictures, stacked when decoded, as `_collate` gives them."""
    return kind(dataset, batch_size=BATCH, num_workers=1, collate_fn=_collate)


def _clocked(decode: Decode, data: bytes) -> tuple[Any, float]:
    """The picture, and the CPU seconds that the worker, with all its threads, has used so far."""
    return decode(data), time.process_time()


def _collate(clocked: list[tuple[Any, float]]) -> tuple[Any, int, float]:
    """(pictures, how many, CPU seconds of the worker)."""
    pictures = [picture for picture, _ in clocked]
    together = torch.stack(pictures) if isinstance(pictures[0], torch.Tensor) else pictures
    return together, len(pictures), clocked[-1][1]


OPENERS = {"mds": open_mds, "webdataset": open_webdataset, "litdata": open_litdata}
