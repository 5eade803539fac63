"""How long every item is: token and image counts of each conversation in a folder of shards, in a side-car.

    FOLDER/lengths/<key>/   lengths.json (what it was measured from), one .npy file per column

The plan needs all lengths before the first batch. Text lengths change with the text settings, the tokenizer, the
template and the shards, so the key is a hash of these; visual tokens are added when the side-car is used, so it
outlives a change of projector.partial_tokens. A folder without a fitting side-car is measured once for a run, into the
run's cache. Columns stay on disk, mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pargo_ds import distributed
from pargo_ds.batch import ConversationEncoder
from pargo_ds.config import BatchSection, DataSection
from pargo_ds.data.conversation import text_settings
from pargo_ds.data.packing.measure import DTYPES, Columns, measure
from pargo_ds.data.shards.folder import ShardFolder, download, is_remote, upload_folder
from pargo_ds.data.shards.shard_files import rows_at

SIDE_CAR_VERSION = 1
NAME = "lengths.json"
LARGEST_TO_MEASURE = 1 << 30
"""Bytes of a folder in an object store that is measured without a side-car: all of it must be
downloaded for that.
"""
CHUNK_ITEMS = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of the items of one folder, by the item's number within it."""

    columns: Columns
    visual_tokens: int
    """Tokens of one image."""
    kept: NDArray[np.uint32] | None = None
    """(items,) places in the columns, where some conversations are left out."""
    refused: int = 0
    """Samples that are left out because no conversation can be made of them (data.refused: skip).
    """

    def __len__(self) -> int:
        if self.kept is None:
            return len(self.columns.samples)
        return len(self.kept)

    def counts(self, items: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tokens (those of images included) and images of these items."""
        places = self._places(items)
        images = self.columns.images[places].astype(np.int64)
        return self.columns.text_tokens[places] + images * self.visual_tokens, images

    def conversations(
        self, items: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the position of each item's sample in the folder, and which of the sample's
        conversations it is.
        """
        places = self._places(items)
        return self.columns.samples[places].astype(np.int64), self.columns.views[places].astype(
            np.int64
        )

    def items_before(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many items belong to samples before each of these positions."""
        places = np.searchsorted(self.columns.samples, samples.astype(np.uint32))
        if self.kept is None:
            return places
        return np.searchsorted(self.kept, places)

    def _places(self, items: NDArray[np.integer]) -> NDArray[np.integer]:
        """Where the items stand in the columns."""
        if self.kept is None:
            return items
        return self.kept[items]


def load_lengths(
    folder: ShardFolder, data: DataSection, processor: ConversationEncoder, cache_dir: str | Path
) -> Lengths:
    """Return the lengths of all items of a folder: from its side-car, from the run's `cache_dir`,
    or measured into that by rank 0.

    All ranks call it together.

    Raises:
        SampleError: the first malformed sample.
        ShardError: a damaged shard.
        ValueError: a damaged side-car, or a large folder in an object store that has none.
    """
    described = _described(folder, data, processor)
    beside, ours = (
        _beside(folder, described["key"]),
        Path(cache_dir) / f"lengths-{described['key']}",
    )
    remote = _store_of(folder)
    if remote is not None:
        once_per_node(partial(_fetch, remote, beside))

    def read_or_measure() -> Columns:
        if not (ours / NAME).is_file():
            _check_size(folder)
            _write(measure(folder, data, processor), described, ours)
        return _read(ours)

    has_side_car = distributed.broadcast_object((beside / NAME).is_file())
    if has_side_car:
        columns = _read(beside)
    else:
        columns = distributed.rank0_first(read_or_measure)
    refused = 0
    if data.refused == "skip":
        refused = _left_out(folder, columns)
    return Lengths(columns=columns, visual_tokens=processor.visual_tokens, refused=refused)


def _left_out(folder: ShardFolder, columns: Columns) -> int:
    """How many samples of a folder have no conversation in the columns.

    Raises ValueError when none has one.
    """
    samples = int(folder.starts[-1])
    if samples and not len(columns.samples):
        raise ValueError(
            f"{folder.path}: every one of its {samples:,} samples is refused; data.refused: error names the first"
        )
    return samples - int(np.count_nonzero(np.diff(columns.samples)) + (len(columns.samples) > 0))


def write_side_car(
    folder: ShardFolder,
    data: DataSection,
    processor: ConversationEncoder,
    processes: int | None = None,
) -> Path | str:
    """Measure a folder of shards and put the side-car beside them, in an object store too; returns
    where it is.

    One that is there already stays. `data` says which texts (`DataSection.of_stream`). Raises as
    `measure`.
    """
    described = _described(folder, data, processor)
    beside = _beside(folder, described["key"])
    remote = _store_of(folder)
    if remote is not None:
        _fetch(remote, beside)
    if (beside / NAME).is_file():
        _read(beside)
    else:
        _write(measure(folder, data, processor, processes), described, beside)
        if remote is not None:
            upload_folder(beside, f"{remote}/lengths/{beside.name}", last=NAME, force=True)
    if remote is not None:
        return f"{remote}/lengths/{beside.name}"
    return beside


def _store_of(folder: ShardFolder) -> str | None:
    """The folder's address in an object store; None for one on a disk, unpacked or not."""
    if folder.remote is not None and is_remote(folder.remote):
        return folder.remote
    return None


def find_side_car(place: str | Path, index: str, data: DataSection) -> Columns | None:
    """Return the newest side-car in `place` (FOLDER/lengths, or a run's cache) of the shards with
    this `index_sha256`.

    It fits the texts of `data`, whatever tokenizer it was measured with; for tools that have none.
    """
    for path in sorted(
        Path(place).glob(f"*/{NAME}"), key=lambda path: path.stat().st_mtime, reverse=True
    ):
        described = json.loads(path.read_text())
        if described["shards"] == index and described["texts"] == text_settings(data):
            return _read(path.parent)
    return None


def within_budget(
    lengths: Lengths, batch: BatchSection, data: DataSection, folder: ShardFolder
) -> tuple[Lengths, int]:
    """Return the items that fit into a pack, and how many were left out (only with data.too_long:
    skip).

    Raises ValueError naming the first samples that do not fit with too_long: error, or when nothing
    fits at all.
    """
    fits: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    for begin in range(0, len(lengths), CHUNK_ITEMS):
        tokens, images = lengths.counts(np.arange(begin, min(begin + CHUNK_ITEMS, len(lengths))))
        fits.append((tokens <= batch.tokens_per_pack) & (images <= batch.images_per_pack))
    fitting = np.concatenate(fits)
    skipped = len(lengths) - int(fitting.sum())
    if not skipped:
        return lengths, 0
    if data.too_long == "error" or skipped == len(lengths):
        raise ValueError(_too_long(lengths, np.flatnonzero(~fitting), batch, data, folder))
    return replace(lengths, kept=np.flatnonzero(fitting).astype(np.uint32)), skipped


def _too_long(
    lengths: Lengths,
    items: NDArray[np.int64],
    batch: BatchSection,
    data: DataSection,
    folder: ShardFolder,
) -> str:
    shown = items[:5]
    rows = rows_at(folder, lengths.conversations(shown)[0].tolist())
    counts = zip(*lengths.counts(shown), strict=True)
    named = []
    for row, (tokens, images) in zip(rows, counts, strict=True):
        named.append(f"sample {row['id']} ({tokens} tokens, {images} images)")
    if len(items) > len(shown):
        named.append("...")
    advice = ""
    if data.too_long != "skip":
        advice = ", or set data.too_long: skip to leave them out and count them"
    return (
        f"{folder.path}: {len(items)} of {len(lengths)} conversations do not fit into a pack of "
        f"{batch.tokens_per_pack} tokens and {batch.images_per_pack} images: {', '.join(named)}. "
        f"Raise batch.tokens_per_pack or batch.images_per_pack{advice}"
    )


def once_per_node(action: Callable[[], T]) -> None:
    """Run `action` on one rank of each machine while the others wait; if it fails on any, every
    rank raises.
    """
    leads = distributed.local_rank() == 0
    distributed.run_on_all_ranks(lambda: action() if leads else None)


def _described(
    folder: ShardFolder, data: DataSection, processor: ConversationEncoder
) -> dict[str, Any]:
    """What the lengths depend on, and the key made of it: nothing of this machine."""
    parts = {
        "version": SIDE_CAR_VERSION,
        "shards": folder.index_sha256,
        "processor": processor.text_fingerprint(),
        "texts": text_settings(data),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
    return {"key": key, **parts}


def _beside(folder: ShardFolder, key: str) -> Path:
    """The side-car's place with the shards; of an object store's, its copy in the cache."""
    if folder.remote is None or is_remote(folder.remote):
        return folder.local / "lengths" / key
    return Path(folder.remote) / "lengths" / key


def _fetch(remote: str, beside: Path) -> None:
    """Copy a side-car from an object store, if there is one; lengths.json comes last here too."""
    if (beside / NAME).is_file():
        return
    address = f"{remote}/lengths/{beside.name}"
    aside = beside.with_name(f".{beside.name}.{os.getpid()}")
    try:
        if download(f"{address}/{NAME}", aside / NAME):
            for column in Columns._fields:
                if not download(f"{address}/{column}.npy", aside / f"{column}.npy"):
                    raise ValueError(
                        f"{address} has a {NAME} but no {column}.npy; delete it and write it anew"
                    )
            shutil.rmtree(beside, ignore_errors=True)
            aside.replace(beside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_size(folder: ShardFolder) -> None:
    if folder.remote is None or not is_remote(folder.remote):
        return
    size = sum((shard["zip_data"] or shard["raw_data"])["bytes"] for shard in folder.shards)
    if size > LARGEST_TO_MEASURE:
        raise ValueError(
            f"{folder.path} has no lengths for this tokenizer, template and text setting, and its {size / 2**30:.0f} "
            "GiB would have to be downloaded to measure them; write them once with: "
            "python tools/build_shards.py lengths RUN.yaml"
        )


def _write(columns: Columns, described: dict[str, Any], folder: Path) -> None:
    """Written aside, then renamed: a killed process leaves no half side-car under the final name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name, column in columns._asdict().items():
        np.save(aside / f"{name}.npy", column, allow_pickle=False)
    counts = {
        "conversations": len(columns.samples),
        "text_tokens": int(columns.text_tokens.sum(dtype=np.int64)),
        "images": len(columns.image_sizes),
    }
    (aside / NAME).write_text(json.dumps({**described, **counts}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)


def _read(folder: Path) -> Columns:
    """The columns, mapped into memory; ValueError when they are not what lengths.json says."""
    try:
        described = json.loads((folder / NAME).read_text())
        files = [folder / f"{name}.npy" for name in Columns._fields]
        columns = Columns(*(np.load(file, mmap_mode="r", allow_pickle=False) for file in files))
        rows = [described["conversations"]] * 4 + [described["images"]]
        found = [(len(column), column.dtype) for column in columns]
        if found != list(zip(rows, DTYPES, strict=True)):
            raise ValueError(f"{found} entries, but {NAME} says {rows}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is damaged ({error}); delete it, it will be measured again"
        ) from error
    return columns
