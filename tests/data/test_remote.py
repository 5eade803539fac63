"""Reading from a real S3 server: the samples asked for, or soon an error that names the shard, on
every worker.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from object_store import ObjectStore
from rows import Rows, damage, names, read, read_all, write
from torch.utils.data import DataLoader

from pargo_ds.data.shards import reader as reader_module
from pargo_ds.data.shards.folder import open_folder, upload_folder
from pargo_ds.data.shards.reader import SampleReader
from pargo_ds.data.shards.shard_cache import lock_file
from pargo_ds.errors import ShardError

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def address(object_store: ObjectStore, tmp_path: Path) -> str:
    """A folder of 100 samples in 17 shards."""
    upload_folder(write(tmp_path / "source", 100), object_store.address("train"))
    return object_store.address("train")


def used(place: Path) -> int:
    """Bytes of the shards in a cache that others change meanwhile."""
    total = 0
    for path in place.glob("*.mds"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_come_from_store_and_disk_in_the_order_asked_for(
    object_store: ObjectStore, tmp_path: Path, compression: str, workers: int
) -> None:
    upload_folder(write(tmp_path / "a", 60, compression=compression), object_store.address("a"))
    write(tmp_path / "b", 40, first=60)
    folders = [
        open_folder(path, tmp_path / "cache", "run")
        for path in (object_store.address("a"), tmp_path / "b")
    ]
    reader = SampleReader(folders)
    rng = np.random.default_rng(0)
    for _ in range(2):
        chunk = rng.permutation(100)
        assert read_all(
            DataLoader(Rows(reader, chunk), batch_size=None, num_workers=workers)
        ) == names(chunk)


def test_only_the_shards_that_are_needed_are_fetched_and_stay_for_the_next_start(
    object_store: ObjectStore, address: str, tmp_path: Path
) -> None:
    folder = open_folder(address, tmp_path / "cache", "run")
    assert read(SampleReader([folder]), np.arange(10)) == names(np.arange(10))
    fetched = sorted(path.name for path in folder.local.glob("*.mds"))
    assert fetched == ["shard.00000.mds", "shard.00001.mds"]
    for name in fetched:
        object_store.delete(f"train/{name}")
    again = SampleReader([open_folder(address, tmp_path / "cache", "run")])
    assert read(again, np.arange(10)) == names(np.arange(10))


@pytest.mark.parametrize("fault", ["damaged", "missing", "truncated"])
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_shard_in_the_store_is_named(
    object_store: ObjectStore, address: str, tmp_path: Path, fault: str, workers: int
) -> None:
    bad = tmp_path / "source" / "shard.00007.mds"
    damage(bad, fault)
    object_store.write(
        "train/shard.00007.mds", bad.read_bytes()
    ) if bad.exists() else object_store.delete("train/shard.00007.mds")
    reader = SampleReader([open_folder(address, tmp_path / "cache", "run")])
    with pytest.raises(ShardError, match=f"{address}/shard.00007.mds is ") as caught:
        read_all(DataLoader(Rows(reader, np.arange(100)), batch_size=None, num_workers=workers))
    said = {
        "missing": "is missing",
        "damaged": "xxh64 hash is not",
        "truncated": "bytes where index.json says",
    }
    assert said[fault] in str(caught.value)
    assert not list((tmp_path / "cache").rglob("shard.00007.mds*")), (
        "a bad shard stayed in the cache"
    )


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("fault", ["damaged", "truncated"])
def test_bad_shard_in_the_cache_is_fetched_again(
    object_store: ObjectStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    compression: str,
    fault: str,
) -> None:
    upload_folder(write(tmp_path / "a", 60, compression=compression), object_store.address("a"))
    folder = open_folder(object_store.address("a"), tmp_path / "cache", "run")
    order = np.random.default_rng(1).permutation(60)
    assert read(SampleReader([folder]), order) == names(order)
    bad = sorted(folder.local.glob("*.mds"))[3]
    damage(bad, fault)
    with caplog.at_level(logging.WARNING, "pargo_ds"):
        assert read(
            SampleReader([open_folder(object_store.address("a"), tmp_path / "cache", "run")]), order
        ) == names(order)
    assert [record.message for record in caplog.records if bad.name in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1
    assert "fetched again" in caplog.text
    object_store.delete(f"a/{bad.name}{'.zstd' if compression == 'zstd' else ''}")
    damage(bad, fault)
    with pytest.raises(ShardError, match=f"{object_store.address('a')}/{bad.name}.* is missing"):
        read(
            SampleReader([open_folder(object_store.address("a"), tmp_path / "cache", "run")]), order
        )


@pytest.mark.parametrize("fault", ["killed", "hanging"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_store_that_stops_answering_is_an_error_on_every_worker(
    object_store: ObjectStore,
    address: str,
    tmp_path: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    workers: int,
) -> None:
    """In streaming alone: one worker ends early with exit status 0, two hang."""
    monkeypatch.setattr(reader_module, "SAMPLES_AHEAD", 4)  # else all is here before the fault
    reader = SampleReader([open_folder(address, tmp_path / "cache", "run")])
    rows = iter(DataLoader(Rows(reader, np.arange(100)), batch_size=None, num_workers=workers))
    assert [next(rows) for _ in range(20)] == names(np.arange(20))
    object_store.kill() if fault == "killed" else object_store.hang()
    more = []
    with pytest.raises(ShardError, match=rf"{address}/shard\.000\d\d\.mds"):
        more.extend(rows)
    assert len(more) < 80
    if workers:
        rows._shutdown_workers()


def test_outage_that_ends_soon_is_survived(
    object_store: ObjectStore, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "SAMPLES_AHEAD", 4)
    reader = SampleReader([open_folder(address, tmp_path / "cache", "run")])
    rows = reader.rows(np.arange(100))
    got = [next(rows)["id"] for _ in range(20)]
    object_store.kill()
    object_store.start()
    object_store.client().create_bucket(Bucket=object_store.bucket)
    object_store.put_folder(tmp_path / "source", "train")
    assert got + [row["id"] for row in rows] == names(np.arange(100))


@pytest.mark.parametrize("workers", [0, 2])
def test_limited_cache_gives_every_sample_exactly(
    object_store: ObjectStore, address: str, tmp_path: Path, workers: int
) -> None:
    """Room for 5 of 17 shards, in random order: each comes down again and again."""
    limit = 5 * (tmp_path / "source" / "shard.00000.mds").stat().st_size + 100
    folder = open_folder(address, tmp_path / "cache", "run")
    largest = 0
    for seed in range(2):
        reader = SampleReader([folder], cache_limit=f"{limit}b")
        order = np.random.default_rng(seed).permutation(100)
        rows = iter(DataLoader(Rows(reader, order), batch_size=None, num_workers=workers))
        for expected in names(order):
            assert next(rows) == expected
            largest = max(largest, used(folder.local))
        assert next(rows, None) is None
        del rows
    assert largest <= limit


def test_full_cache_of_an_earlier_start_makes_room(
    object_store: ObjectStore, address: str, tmp_path: Path
) -> None:
    """streaming: "there are no shards present locally to evict"."""
    folder = open_folder(address, tmp_path / "cache", "run")
    assert read(SampleReader([folder]), np.arange(100)) == names(np.arange(100))
    for path in sorted(folder.local.glob("*.mds"))[10:]:
        path.unlink()
    order = np.random.default_rng(0).permutation(100)
    assert read(SampleReader([folder], cache_limit="20kb"), order) == names(order)
    assert used(folder.local) <= 20 << 10


def test_rebuilt_folder_is_never_mixed_with_its_cached_shards(
    object_store: ObjectStore, address: str, tmp_path: Path
) -> None:
    assert read(
        SampleReader([open_folder(address, tmp_path / "cache", "run")]), np.arange(100)
    ) == names(np.arange(100))
    upload_folder(write(tmp_path / "new", 90, first=5), address, force=True)
    rebuilt = SampleReader([open_folder(address, tmp_path / "cache", "run")])
    assert read(rebuilt, np.arange(90)) == names(np.arange(5, 95))


def test_folder_rebuilt_during_a_run_is_an_error(
    object_store: ObjectStore, address: str, tmp_path: Path
) -> None:
    reader = SampleReader([open_folder(address, tmp_path / "cache", "run")])
    upload_folder(write(tmp_path / "new", 100, first=5), address, force=True)
    with pytest.raises(
        ShardError,
        match=r"shard.00000.mds is damaged: .*; upload or write it anew, then start again",
    ):
        read(reader, np.arange(100))


def test_shard_that_a_killed_process_was_fetching_is_fetched_by_another(
    object_store: ObjectStore, address: str, tmp_path: Path
) -> None:
    """In streaming alone: the others wait for it for ever."""
    folder = open_folder(address, tmp_path / "cache", "run")
    object_store.hang()
    other = multiprocessing.get_context("fork").Process(
        target=read, args=(SampleReader([folder]), np.arange(100))
    )
    other.start()
    while not lock_file(folder.local / "shard.00000.mds").exists():
        time.sleep(0.01)
    other.kill()
    other.join()
    object_store.go_on()
    assert read(SampleReader([folder]), np.arange(100)) == names(np.arange(100))


RANK = """
import sys
import numpy as np
import torch.distributed as dist
from pargo_ds import distributed
from pargo_ds.data.shards import reader
from pargo_ds.data.shards.folder import open_folder

reader.SAMPLES_AHEAD = 4
dist.init_process_group("gloo")
samples = reader.SampleReader([open_folder(sys.argv[1], sys.argv[2], "run")])
for number, row in enumerate(samples.rows(np.arange(distributed.rank(), 100, distributed.world_size()))):
    print(row["id"], flush=True)
    if number == 10:
        sys.stdin.readline()
"""


def start_ranks(count: int, *arguments: str) -> list[subprocess.Popen]:
    port = ObjectStore().port
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *arguments],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_every_rank_ends_naming_a_shard(
    object_store: ObjectStore, address: str, tmp_path: Path, fault: str
) -> None:
    """With the real time limits, which together are far below that of gloo (half an hour)."""
    ranks = start_ranks(2, address, str(tmp_path / "cache"))
    for rank in ranks:
        assert [rank.stdout.readline() for _ in range(11)]
    object_store.kill() if fault == "killed" else object_store.hang()
    started = time.monotonic()
    for rank in ranks:
        rank.stdin.write("\n")
        rank.stdin.flush()
    for rank in ranks:
        _, stderr = rank.communicate(timeout=250)
        assert rank.returncode == 1
        assert "ShardError: s3://" in stderr
        assert "shard.000" in stderr
    print(f"the ranks ended {time.monotonic() - started:.0f} s after the store")
