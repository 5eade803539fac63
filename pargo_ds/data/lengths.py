"""How long every item is: token and picture counts of each conversation in a shard folder, measured once and
cached.

The plan needs all lengths before the first batch. They change with the text settings and the processor, so
the cache file's name is a hash of both and of the shards' index.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pargo_ds import distributed
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.conversation import encode_text, text_settings, views
from pargo_ds.data.reader import check_shard
from pargo_ds.data.shards import INDEX_NAME, open_shards, read_index, read_sample

CACHE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """One entry per item (a conversation of a sample), in stored order. All arrays are (items,)."""

    samples: NDArray[np.int64]
    """Position of the sample in the folder."""
    views: NDArray[np.int64]
    """Which of the sample's conversations (an index into `conversation.views`)."""
    tokens: NDArray[np.int64]
    """Tokens, those of the pictures included."""
    pictures: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, chosen: NDArray[np.bool_]) -> Lengths:
        """Only the items where `chosen` (items,) is true."""
        return Lengths(**{name: values[chosen] for name, values in self.__dict__.items()})


def index_hash(folder: str | Path) -> str:
    """Hash of a shard folder's index, which names every shard with its size and hash."""
    read_index(folder)
    return hashlib.sha256((Path(folder) / INDEX_NAME).read_bytes()).hexdigest()


def load_lengths(folder: str | Path, data: DataSection, processor: Any, cache_dir: str | Path) -> Lengths:
    """Lengths of all items of a shard folder; rank 0 measures them once, the other ranks read its cache file.

    All ranks call it together. Raises SampleError for the first malformed sample and ShardError for a damaged
    shard.
    """
    key = [CACHE_VERSION, index_hash(folder), processor.fingerprint(), text_settings(data)]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = Path(cache_dir) / f"lengths-{name}.npz"

    def read_or_measure() -> Lengths:
        if path.is_file():
            return _read(path)
        lengths = measure(folder, data, processor)
        _write(lengths, path)
        return lengths

    return distributed.main_then_others(read_or_measure)


def measure(folder: str | Path, data: DataSection, processor: Any) -> Lengths:
    """Encode the text of every item and count (progress bar on a terminal); pictures are not decoded."""
    dataset = open_shards(folder)
    for shard in tqdm(dataset.shards, desc=f"checking shards of {folder}", unit="shard", disable=None):
        check_shard(shard)
    rows = []
    for position in tqdm(range(len(dataset)), desc=f"measuring {folder}", unit="sample", disable=None):
        sample = read_sample(dataset, position)
        for view, turns in enumerate(views(sample, data, where=str(folder))):
            ids, _ = encode_text(sample, turns, processor, where=str(folder))
            rows.append((position, view, len(ids), len(sample.images)))
    samples, view_numbers, tokens, pictures = np.array(rows, np.int64).reshape(-1, 4).T.copy()
    return Lengths(samples=samples, views=view_numbers, tokens=tokens, pictures=pictures)


def within_budget(lengths: Lengths, batch: BatchSection, data: DataSection, folder: str | Path) -> tuple[Lengths, int]:
    """The items that fit into a pack, and how many were left out (only with data.too_long: skip).

    Raises ValueError naming the first samples that do not fit with too_long: error, or when nothing fits at
    all.
    """
    fits = (lengths.tokens <= batch.tokens_per_pack) & (lengths.pictures <= batch.pictures_per_pack)
    skipped = int((~fits).sum())
    if skipped and (data.too_long == "error" or skipped == len(lengths)):
        dataset = open_shards(folder)
        shown = np.flatnonzero(~fits)[:5]
        named = [
            f"sample {read_sample(dataset, int(lengths.samples[item])).id} "
            f"({lengths.tokens[item]} tokens, {lengths.pictures[item]} pictures)"
            for item in shown
        ]
        advice = "" if data.too_long == "skip" else ", or set data.too_long: skip to leave them out and count them"
        raise ValueError(
            f"{folder}: {skipped} of {len(lengths)} conversations do not fit into a pack of "
            f"{batch.tokens_per_pack} tokens and {batch.pictures_per_pack} pictures: {', '.join(named)}"
            f"{', ...' if skipped > len(shown) else ''}. Raise batch.tokens_per_pack or batch.pictures_per_pack{advice}"
        )
    return lengths.take(fits), skipped


def _read(path: Path) -> Lengths:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Lengths(**{name: stored[name] for name in ("samples", "views", "tokens", "pictures")})
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, it will be measured again") from error


def _write(lengths: Lengths, path: Path) -> None:
    """Written aside, then renamed: a killed process leaves no half file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "wb") as file:
        np.savez(file, **lengths.__dict__)
    aside.replace(path)
