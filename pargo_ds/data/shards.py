"""Samples -> a folder of MDS shards, whole or absent; and plain local reading of such a folder.

`streaming` (mosaicml-streaming) does the format. It is imported inside the functions, because its import takes seconds
and the command lines should answer `--help` at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pargo_ds.data.schema import COLUMNS, Sample

if TYPE_CHECKING:
    from streaming import LocalDataset, MDSWriter

INDEX_NAME = "index.json"
COMPRESSIONS = ("none", "zstd")
SHARD_BYTES = 1 << 24
HASHES = ("xxh64",)
SCHEMA_VERSION = 1
"""Of the samples in the shards (`schema.COLUMNS` and what they mean); readers refuse another one."""


@contextlib.contextmanager
def whole_folder(folder: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty temporary sibling of `folder`; on success it takes the folder's name, on an error it vanishes.

    So `folder` is whole or absent (or, with `force`, the old one until the last moment). The temporary name starts with
    a dot and ends in the process id; a killed process leaves it behind, harmlessly.

    Raises:
        ValueError: `folder` exists and `force` is false, or `folder` is a file.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder to write shards into: choose another name")
    if folder.exists() and not force:
        raise ValueError(f"{folder} exists already; choose another folder, or pass force (--force) to replace it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}.unfinished-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        replaced = folder.parent / f".{folder.name}.replaced-{os.getpid()}"
        if folder.exists():
            folder.rename(replaced)  # a rename cannot replace a folder that is not empty
        unfinished.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_shards(
    samples: Iterable[Sample],
    folder: str | Path,
    *,
    compression: str = "none",
    hashes: tuple[str, ...] = HASHES,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
) -> int:
    """Write samples, in their order, as MDS shards of at most about `shard_bytes` bytes; return how many were written.

    The same samples give the same bytes. Compression is "none" or "zstd"; `hashes` name streaming's hash algorithms
    (stored in index.json, checked by readers that ask for it).

    Raises:
        SampleError: a sample does not fit the format (its id and the reason); nothing is left behind.
        ValueError: the folder exists and `force` is false, no sample came, two samples share an id, or an unknown
            compression.
    """
    check_compression(compression)
    seen: set[str] = set()
    with whole_folder(folder, force=force) as unfinished:
        writer = shard_writer(unfinished, compression, hashes, shard_bytes)
        try:
            for sample in samples:
                if sample.id in seen:
                    raise ValueError(f"sample {sample.id!r} comes twice; ids must be unique within a folder of shards")
                seen.add(sample.id)
                writer.write(sample.to_mds())
        except BaseException:
            writer.cancel_future_jobs()
            raise
        if not seen:
            raise ValueError(f"no samples to write into {folder}; an empty shard folder would be of no use")
        finish_shards(writer)
    return len(seen)


def check_compression(name: str) -> None:
    """Raise ValueError for an unknown compression."""
    if name not in COMPRESSIONS:
        raise ValueError(f"unknown compression {name!r}; expected one of {', '.join(COMPRESSIONS)}")


def shard_writer(
    folder: str | Path, compression: str = "none", hashes: tuple[str, ...] = HASHES, shard_bytes: int = SHARD_BYTES
) -> MDSWriter:
    """A writer of rows (`Sample.to_mds`) into a folder that it makes; end with `finish_shards`."""
    from streaming import MDSWriter

    return MDSWriter(
        columns=COLUMNS,
        out=str(folder),
        compression=None if compression == "none" else compression,
        hashes=list(hashes),
        size_limit=shard_bytes,
    )


def finish_shards(writer: MDSWriter) -> None:
    """Write the last shard and the index; MDSWriter's own `finish` may sleep a second, waiting for uploads."""
    if writer.new_samples:
        writer.flush_shard()
    writer.executor.shutdown(wait=True)
    write_index(writer.local, writer.shards)


def write_index(folder: str | Path, shards: list[dict[str, Any]]) -> None:
    """Put index.json over the given shards, with the schema's version, into a folder: whole or not at all."""
    index = {"version": 2, "pargo_ds": {"schema_version": SCHEMA_VERSION}, "shards": shards}
    aside = Path(folder) / f".{INDEX_NAME}.unfinished"
    aside.write_text(json.dumps(index, sort_keys=True))
    aside.replace(Path(folder) / INDEX_NAME)


def read_index(folder: str | Path) -> dict[str, Any]:
    """Return the parsed index.json of a shard folder.

    Raises:
        ValueError: there is no index, it is not readable, its schema has another version, or its columns are not those
            of `schema.COLUMNS` (so that no reader ever meets an encoding such as `pkl`).
    """
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a folder of shards: it has no {INDEX_NAME}. Expected what tools/build_shards.py writes "
            "(give one split, for example OUT/train, not OUT)"
        )
    try:
        index = json.loads(path.read_text())
        shards, version = index["shards"], index.get("pargo_ds", {}).get("schema_version", SCHEMA_VERSION)
        columns = [dict(zip(shard["column_names"], shard["column_encodings"], strict=True)) for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an MDS index ({type(error).__name__}: {error}); write the shards anew"
        ) from error
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version!r}; this program reads {SCHEMA_VERSION}. Build the shards anew, "
            "or use the version of pargo_ds that wrote them"
        )
    for shard, found in zip(shards, columns, strict=True):
        if found != COLUMNS:
            raise ValueError(
                f"{path}: {shard['raw_data']['basename']} has the columns {found}; expected {COLUMNS}. "
                "Convert the data with tools/build_shards.py"
            )
    return index


def open_shards(folder: str | Path) -> LocalDataset:
    """Open a local shard folder for plain reading by position: `len(dataset)`, `read_sample(dataset, 7)`.

    No shuffling, no downloading, no shared memory: for tools, tests and evaluation. Compressed shards are unpacked into
    a temporary folder that lives as long as the dataset; the folder itself is never written to.

    Raises:
        ValueError: as `read_index`, or a shard file that the index names is missing.
    """
    index = read_index(folder)
    from streaming import LocalDataset

    for shard in index["shards"]:
        stored = shard["zip_data"] or shard["raw_data"]
        if not (Path(folder) / stored["basename"]).is_file():
            raise ValueError(
                f"{folder} lacks {stored['basename']}, which its {INDEX_NAME} names; copy or write it anew"
            )
    if not any(shard["zip_data"] for shard in index["shards"]):
        return LocalDataset(str(folder))
    unpacked = tempfile.TemporaryDirectory(prefix="pargo_ds_shards_")
    _unpack(Path(folder), Path(unpacked.name), index)
    dataset = LocalDataset(unpacked.name)
    dataset.unpacked = unpacked  # removes the folder when the dataset goes
    return dataset


def _unpack(folder: Path, target: Path, index: dict[str, Any]) -> None:
    """Write the raw shards of a compressed shard folder, and an index for them, into `target`."""
    from streaming.base.compression import decompress

    for shard in index["shards"]:
        packed = shard["zip_data"]
        if packed:
            raw = decompress(shard["compression"], (folder / packed["basename"]).read_bytes())
            (target / shard["raw_data"]["basename"]).write_bytes(raw)
        else:
            shutil.copyfile(folder / shard["raw_data"]["basename"], target / shard["raw_data"]["basename"])
    (target / INDEX_NAME).write_text((folder / INDEX_NAME).read_text())


def read_sample(dataset: LocalDataset, position: int) -> Sample:
    """Return the sample at `position` (0 ... len(dataset) - 1), checked.

    Raises:
        IndexError: no such position.
        SampleError: the stored sample does not fit the format (its id, its shard and the reason).
    """
    if not 0 <= position < len(dataset):
        raise IndexError(f"no sample {position}; the shards hold {len(dataset)} (0 to {len(dataset) - 1})")
    shard, _ = dataset.spanner[position]
    return Sample.from_mds(dataset[position], where=dataset.shards[shard].raw_data.basename)


def read_samples(folder: str | Path) -> Iterator[Sample]:
    """Yield every sample of a local shard folder in stored order; raises as `open_shards` and `read_sample`."""
    dataset = open_shards(folder)
    for position in range(len(dataset)):
        yield read_sample(dataset, position)
