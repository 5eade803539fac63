"""Write samples into a folder of MDS shards, which is whole or absent, and read a local folder.

`streaming` (mosaicml-streaming) implements the format. It is imported inside the functions, because
its import takes seconds and the command lines should answer `--help` at once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pargo_ds.data.shards.schema import COLUMNS, Sample
from pargo_ds.files.whole_file import write_whole
from pargo_ds.files.whole_folder import whole_folder

if TYPE_CHECKING:
    from streaming import LocalDataset, MDSWriter
    from streaming.base.format import MDSReader

INDEX_NAME = "index.json"
COMPRESSIONS = ("none", "zstd")
SHARD_BYTES = 1 << 24
HASHES = ("xxh64",)
SCHEMA_VERSION = 1
"""Version of the samples in the shards (`schema.COLUMNS` and their meaning). Readers refuse shards
of another version.
"""


def write_shards(
    samples: Iterable[Sample],
    folder: str | Path,
    *,
    compression: str = "none",
    hashes: tuple[str, ...] = HASHES,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
) -> int:
    """Write samples in their order as MDS shards; return the number of samples.

    The same samples give the same bytes.

    Args:
        compression: "none" or "zstd".
        hashes: names of streaming's hash algorithms; the hashes are stored in index.json.
        shard_bytes: approximate upper bound of the size of a shard.
        force: replace an existing folder.

    Raises:
        SampleError: a sample does not fit the format; no folder is left behind.
        ValueError: the folder exists and `force` is false, there is no sample, two samples have the
            same id, or the compression is unknown.
    """
    check_compression(compression)
    seen: set[str] = set()
    with whole_folder(folder, force=force) as unfinished:
        writer = shard_writer(unfinished, compression, hashes, shard_bytes)
        try:
            for sample in samples:
                if sample.id in seen:
                    raise ValueError(
                        f"sample {sample.id!r} comes twice; ids must be unique within a folder of shards"
                    )
                seen.add(sample.id)
                writer.write(sample.to_mds())
        except BaseException:
            writer.cancel_future_jobs()
            raise
        if not seen:
            raise ValueError(
                f"no samples to write into {folder}; an empty shard folder would be of no use"
            )
        finish_shards(writer)
    return len(seen)


def check_compression(name: str) -> None:
    """Raise ValueError for an unknown compression."""
    if name not in COMPRESSIONS:
        raise ValueError(f"unknown compression {name!r}; expected one of {', '.join(COMPRESSIONS)}")


def shard_writer(
    folder: str | Path,
    compression: str = "none",
    hashes: tuple[str, ...] = HASHES,
    shard_bytes: int = SHARD_BYTES,
) -> MDSWriter:
    """Return a writer of rows (`Sample.to_mds`), which makes the folder. Call `finish_shards` at
    the end.
    """
    from streaming import MDSWriter

    return MDSWriter(
        columns=COLUMNS,
        out=str(folder),
        compression=None if compression == "none" else compression,
        hashes=list(hashes),
        size_limit=shard_bytes,
    )


def finish_shards(writer: MDSWriter) -> None:
    """Write the last shard and the index. MDSWriter's own method `finish` is not used, because it
    waits for uploads and may sleep for a second.
    """
    if writer.new_samples:
        writer.flush_shard()
    writer.executor.shutdown(wait=True)
    write_index(writer.local, writer.shards)


def write_index(folder: str | Path, shards: list[dict[str, Any]]) -> None:
    """Write index.json with the entries of the given shards and the version of the schema."""
    index = {"version": 2, "pargo_ds": {"schema_version": SCHEMA_VERSION}, "shards": shards}
    write_whole(Path(folder) / INDEX_NAME, json.dumps(index, sort_keys=True))


class Index(NamedTuple):
    """The contents of the index.json of a shard folder."""

    shards: list[dict[str, Any]]
    """One entry for each shard: its files with their sizes and hashes, and the number of samples.
    """
    sha256: str
    """Hash of index.json. The file names every shard with its hash, so this hash identifies the
    contents of the whole folder.
    """


def _columns_of(shard: dict[str, Any]) -> dict[str, str]:
    """The encoding of each column by its name, as an entry of the index gives them."""
    return dict(zip(shard["column_names"], shard["column_encodings"], strict=True))


def read_index(folder: str | Path) -> Index:
    """Read the index.json of a shard folder.

    Raises:
        ValueError: there is no index, it is damaged, its schema has another version, or its columns
            are not those of `schema.COLUMNS` (so that no reader has to decode a pickle).
    """
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a folder of shards: it has no {INDEX_NAME}. Expected what tools/build_shards.py writes "
            "(give one split, for example OUT/train, not OUT)"
        )
    content = path.read_bytes()
    try:
        index = json.loads(content)
        shards = index["shards"]
        version = index.get("pargo_ds", {}).get("schema_version", SCHEMA_VERSION)
        columns = [_columns_of(shard) for shard in shards]
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
    return Index(shards, hashlib.sha256(content).hexdigest())


def open_shards(folder: str | Path) -> LocalDataset:
    """Open a local shard folder for reading by position: `len(dataset)`, `read_sample(dataset, 7)`.

    This is for tools, tests and evaluation: nothing is shuffled, downloaded or shared between
    processes. Compressed shards are unpacked into a temporary folder that exists as long as the
    dataset; nothing is written into the shard folder itself.

    Raises:
        ValueError: as `read_index`, or the file of a shard is missing.
    """
    shards = read_index(folder).shards
    from streaming import LocalDataset

    for shard in shards:
        stored = shard["zip_data"] or shard["raw_data"]
        if not (Path(folder) / stored["basename"]).is_file():
            raise ValueError(
                f"{folder} lacks {stored['basename']}, which its {INDEX_NAME} names; copy or write it anew"
            )
    if not any(shard["zip_data"] for shard in shards):
        return LocalDataset(str(folder))
    unpacked = tempfile.TemporaryDirectory(prefix="pargo_ds_shards_")
    _unpack(Path(folder), Path(unpacked.name), shards)
    dataset = LocalDataset(unpacked.name)
    weakref.finalize(dataset, unpacked.cleanup)  # removes the folder when the dataset goes
    return dataset


def _unpack(folder: Path, target: Path, shards: list[dict[str, Any]]) -> None:
    """Write the unpacked shards of a compressed shard folder and their index into `target`."""
    from streaming.base.compression import decompress

    for shard in shards:
        packed = shard["zip_data"]
        if packed:
            raw = decompress(shard["compression"], (folder / packed["basename"]).read_bytes())
            (target / shard["raw_data"]["basename"]).write_bytes(raw)
        else:
            shutil.copyfile(
                folder / shard["raw_data"]["basename"], target / shard["raw_data"]["basename"]
            )
    (target / INDEX_NAME).write_text((folder / INDEX_NAME).read_text())


def read_sample(dataset: LocalDataset, position: int) -> Sample:
    """Return the sample at `position` (0 ... len(dataset) - 1), checked.

    Raises:
        IndexError: there is no such position.
        SampleError: the stored sample does not fit the format.
    """
    if not 0 <= position < len(dataset):
        raise IndexError(
            f"no sample {position}; the shards hold {len(dataset)} (0 to {len(dataset) - 1})"
        )
    shard, _ = dataset.spanner[position]
    file = cast("MDSReader", dataset.shards[shard]).raw_data.basename
    return Sample.from_mds(dataset[position], where=file)


def read_samples(folder: str | Path) -> Iterator[Sample]:
    """Yield every sample of a local shard folder in stored order. Raises as `open_shards` and
    `read_sample`.
    """
    dataset = open_shards(folder)
    for position in range(len(dataset)):
        yield read_sample(dataset, position)
