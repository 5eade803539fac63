"""Shard folders: whole or absent, the same bytes for the same samples, and clear words for what is
not one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pargo_ds.data.shards.mds import (
    SCHEMA_VERSION,
    open_shards,
    read_index,
    read_sample,
    read_samples,
    write_shards,
)
from pargo_ds.data.shards.schema import Sample
from pargo_ds.errors import SampleError
from pargo_ds.files.whole_folder import whole_folder


def make_samples(count: int) -> list[Sample]:
    return [
        Sample(
            id=f"s{number}",
            images=[bytes([number]) * 500],
            captions={"coarse": f"Number {number}."},
        )
        for number in range(count)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_samples_come_back_in_order_from_several_shards(tmp_path: Path, compression: str) -> None:
    samples = make_samples(20)
    assert write_shards(samples, tmp_path / "out", compression=compression, shard_bytes=4000) == 20
    before = contents(tmp_path / "out")
    assert sum(name.startswith("shard.") for name in before) > 2
    dataset = open_shards(tmp_path / "out")
    assert [read_sample(dataset, position) for position in range(len(dataset))] == samples
    assert contents(tmp_path / "out") == before, "reading wrote into the folder"
    with pytest.raises(IndexError, match="no sample 20"):
        read_sample(dataset, 20)


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(make_samples(20), tmp_path / name, shard_bytes=4000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_every_shard_carries_its_hash(tmp_path: Path) -> None:
    write_shards(make_samples(3), tmp_path / "out", hashes=("sha1", "xxh64"))
    (shard,) = json.loads((tmp_path / "out" / "index.json").read_text())["shards"]
    assert set(shard["raw_data"]["hashes"]) == {"sha1", "xxh64"}


def test_schema_version_is_stored_and_another_one_refused(tmp_path: Path) -> None:
    write_shards(make_samples(3), tmp_path / "out")
    path = tmp_path / "out" / "index.json"
    index = json.loads(path.read_text())
    assert index.pop("pargo_ds") == {"schema_version": SCHEMA_VERSION}
    path.write_text(json.dumps(index))
    assert len(list(read_samples(tmp_path / "out"))) == 3, "shards of before the version are read"
    for version in (SCHEMA_VERSION + 1, "x", None):
        path.write_text(json.dumps({**index, "pargo_ds": {"schema_version": version}}))
        with pytest.raises(
            ValueError, match=rf"schema version {version!r}; this program reads {SCHEMA_VERSION}"
        ):
            read_index(tmp_path / "out")
    path.write_text(json.dumps({**index, "pargo_ds": "x"}))
    with pytest.raises(ValueError, match="is not an MDS index"):
        read_index(tmp_path / "out")


def test_streaming_reads_what_was_written(tmp_path: Path) -> None:
    from streaming import StreamingDataset

    write_shards(make_samples(6), tmp_path / "out")
    dataset = StreamingDataset(
        local=str(tmp_path / "out"), shuffle=False, batch_size=1, validate_hash="xxh64"
    )
    assert [Sample.from_mds(dataset[number]) for number in range(6)] == make_samples(6)


def test_malformed_sample_leaves_nothing_behind(tmp_path: Path) -> None:
    bad = Sample(id="broken", images=[b""])
    with pytest.raises(SampleError, match="sample 'broken': image 0 is empty"):
        write_shards([*make_samples(3), bad], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_keeps_the_old_folder(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Sample]:
        yield from make_samples(3)
        raise KeyboardInterrupt

    write_shards(make_samples(2), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted(), tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_existing_folder_needs_force(tmp_path: Path) -> None:
    write_shards(make_samples(2), tmp_path / "out")
    with pytest.raises(ValueError, match="exists already.*--force"):
        write_shards(make_samples(3), tmp_path / "out")
    write_shards(make_samples(3), tmp_path / "out", force=True)
    assert len(list(read_samples(tmp_path / "out"))) == 3
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"), whole_folder(tmp_path / "file", force=True):
        pass


@pytest.mark.parametrize(
    ("samples", "reason"),
    [([], "no samples"), (make_samples(2) + make_samples(1), "sample 's0' comes twice")],
)
def test_useless_sets_are_refused(tmp_path: Path, samples: list[Sample], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        write_shards(samples, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_unknown_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown compression 'rar'; expected one of none, zstd"):
        write_shards(make_samples(1), tmp_path / "out", compression="rar")


def test_folder_without_index_gives_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a folder of shards: it has no index\.json"):
        open_shards(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match="is not an MDS index"):
        open_shards(tmp_path)


def test_missing_shard_and_foreign_columns_are_named(tmp_path: Path) -> None:
    from streaming import MDSWriter

    write_shards(make_samples(2), tmp_path / "out")
    (tmp_path / "out" / "shard.00000.mds").unlink()
    with pytest.raises(ValueError, match=r"lacks shard\.00000\.mds"):
        open_shards(tmp_path / "out")
    with MDSWriter(columns={"x": "pkl"}, out=str(tmp_path / "pickled")) as writer:
        writer.write({"x": 1})
    with pytest.raises(ValueError, match="has the columns {'x': 'pkl'}; expected"):
        open_shards(tmp_path / "pickled")
