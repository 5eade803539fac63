"""Object stores, with a real S3 server: folders arrive whole, the cache never mixes two states,
errors come soon.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from object_store import ObjectStore

from pargo_ds.data.shards import cache, s3
from pargo_ds.data.shards.folder import download, is_remote, open_folder, safe_join, upload_folder
from pargo_ds.data.shards.mds import write_shards
from pargo_ds.data.shards.schema import Sample
from pargo_ds.errors import CacheError, StoreError, StoreUnreachableError, comes_again

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]


def make_samples(count: int, first: int = 0) -> list[Sample]:
    numbers = range(first, first + count)
    return [
        Sample(id=f"s{n}", images=[bytes([n % 256]) * 500], captions={"coarse": f"Number {n}."})
        for n in numbers
    ]


@pytest.mark.parametrize(
    "path, remote",
    [
        ("s3://bucket/a", True),
        ("gs://bucket/a", True),
        ("data/train", False),
        ("/data/s3:/x", False),
        ("C:/x", False),
    ],
)
def test_addresses_have_a_scheme(path: str, remote: bool) -> None:
    assert is_remote(path) == remote


def test_folder_comes_back_as_it_was_uploaded(object_store: ObjectStore, tmp_path: Path) -> None:
    odd = [
        "a b.txt",
        "50%?&x=1#y.txt",
        "sub folder/é ü+.bin",
        "sub folder/deep/-.txt",
        "empty",
        "index.json",
    ]
    files = {name: os.urandom(number) for number, name in enumerate(odd)} | {
        f"f{n}": b"x" * n for n in range(60)
    }
    files["empty"] = b""
    for name, content in files.items():
        path = tmp_path / "there" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    upload_folder(tmp_path / "there", object_store.address("some/where/"))
    assert object_store.keys() == sorted(f"some/where/{name}" for name in files)
    for name, content in files.items():
        back = tmp_path / "back" / name
        assert download(object_store.address(f"some/where/{name}"), back)
        assert back.read_bytes() == content
    assert not list((tmp_path / "back").rglob("*.part"))


def test_files_larger_than_a_part_are_uploaded_whole(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    content = os.urandom(1 << 20) * 11
    (tmp_path / "big").write_bytes(content)
    assert s3.put(object_store.address("big"), tmp_path / "big") == len(content)
    assert object_store.read("big") == content


def test_interrupted_upload_leaves_no_index(
    object_store: ObjectStore, tmp_path: Path, impatient: None
) -> None:
    for number in range(300):
        (tmp_path / f"a{number:03}").write_bytes(b"x")
    (tmp_path / "index.json").write_text("{}")

    def hang_when_some_are_there() -> None:
        while len(object_store.keys()) < 5:
            time.sleep(0.01)
        object_store.hang()

    hang = threading.Thread(target=hang_when_some_are_there)
    hang.start()
    with pytest.raises(
        StoreError, match=r"writing s3://.* does not answer|asking for s3://.* does not answer"
    ):
        upload_folder(tmp_path, object_store.address("half"))
    hang.join()
    object_store.go_on()
    keys = object_store.keys()
    assert 0 < len(keys) < 300
    assert "half/index.json" not in keys


def test_present_index_is_replaced_by_force_only(object_store: ObjectStore, tmp_path: Path) -> None:
    write_shards(make_samples(3), tmp_path / "out")
    address = object_store.address("out")
    upload_folder(tmp_path / "out", address)
    with pytest.raises(StoreError, match="has a index.json already.*force"):
        upload_folder(tmp_path / "out", address)
    upload_folder(tmp_path / "out", address, force=True)
    with pytest.raises(StoreError, match="has no other.json; nothing was uploaded"):
        upload_folder(tmp_path / "out", address, last="other.json")


def test_missing_objects_buckets_and_schemes(object_store: ObjectStore, tmp_path: Path) -> None:
    assert download(object_store.address("nothing"), tmp_path / "x") is False
    assert download(str(tmp_path / "nothing"), tmp_path / "x") is False
    assert s3.object_size(object_store.address("nothing")) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        StoreError, match=f"reading s3://nobody/x failed at {object_store.url}: NoSuchBucket"
    ) as refused:
        download("s3://nobody/x", tmp_path / "x")
    assert comes_again(refused.value)  # a run that names this bucket is not started again
    for address in ("gs://bucket/x", "hf://datasets/x"):
        with pytest.raises(
            StoreError, match="cannot be read or written: expected s3://bucket/folder"
        ):
            open_folder(address, tmp_path)
    with pytest.raises(StoreError, match="without credentials in the address") as caught:
        open_folder("s3://key:secret@bucket/x", tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("fault", ["down", "hanging"])
def test_store_that_does_not_answer_is_an_error_without_secrets(
    object_store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
    fault: str,
) -> None:
    monkeypatch.setenv(
        "S3_ENDPOINT_URL", object_store.url.replace("http://", "http://user:secret@")
    )
    object_store.kill() if fault == "down" else object_store.hang()
    with pytest.raises(StoreUnreachableError) as caught:
        open_folder(object_store.address("train"), tmp_path / "cache")
    assert not comes_again(caught.value)  # a job that resumes during an outage is started again
    said = "cannot be reached" if fault == "down" else "does not answer"
    assert (
        f"reading {object_store.address('train')}/index.json failed at {object_store.url}: it {said}"
        in str(caught.value)
    )
    assert "secret" not in str(caught.value)
    assert "test-password" not in str(caught.value)


def test_worst_wait_for_a_store_is_below_a_minute() -> None:
    """A request that begins just before the patience ends may take both time limits once more."""
    assert s3.READ_TIMEOUT_S + s3.PATIENCE_S + s3.CONNECT_TIMEOUT_S + s3.READ_TIMEOUT_S < 40


def test_short_outage_is_survived(object_store: ObjectStore, tmp_path: Path) -> None:
    object_store.write("x", b"content")
    object_store.hang()
    threading.Timer(1.0, object_store.go_on).start()
    assert download(object_store.address("x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"content"


def test_giving_up_ends_a_download(object_store: ObjectStore, tmp_path: Path) -> None:
    object_store.write("x", b"content" * 1000)
    with pytest.raises(
        StoreError, match=r"reading s3://.*/x at .* was given up after 7000 of 7000 bytes"
    ):
        download(object_store.address("x"), tmp_path / "x", stop=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_only_the_index_is_fetched_when_a_folder_is_opened(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    write_shards(make_samples(20), tmp_path / "out", shard_bytes=4000)
    upload_folder(tmp_path / "out", object_store.address("train"))
    folder = open_folder(object_store.address("train") + "/", tmp_path / "cache", "run")
    assert folder.remote == object_store.address("train")
    assert folder.local.parent == tmp_path / "cache" / "run"
    assert sorted(path.name for path in folder.local.iterdir()) == [".owner", "index.json"]
    assert (folder.local / "index.json").read_bytes() == (
        tmp_path / "out" / "index.json"
    ).read_bytes()


def test_folder_without_or_with_a_bad_index_is_refused(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    address = object_store.address("train")
    with pytest.raises(
        StoreError, match=f"{address} at {object_store.url} is not a folder of shards"
    ):
        open_folder(address, tmp_path / "cache")
    object_store.write("train/index.json", b"{")
    with pytest.raises(StoreError, match=f"{address}: .*is not an MDS index"):
        open_folder(address, tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"nowhere is not a folder of shards: it has no index\.json"
    ):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../../out.mds", "/etc/passwd", "a/../../b.mds", ""])
def test_names_in_an_index_stay_inside_the_folder(
    object_store: ObjectStore, tmp_path: Path, name: str
) -> None:
    write_shards(make_samples(3), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = name
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    object_store.put_folder(tmp_path / "out", "train")
    for path in (object_store.address("train"), tmp_path / "out"):
        with pytest.raises(StoreError, match="leads out of the folder"):
            open_folder(path, tmp_path / "cache")
    assert safe_join(tmp_path, "part-0/shard.00000.mds") == tmp_path / "part-0" / "shard.00000.mds"


def test_shards_of_an_older_index_are_forgotten(object_store: ObjectStore, tmp_path: Path) -> None:
    """Rebuilt in place: what did not change stays in the cache, the rest goes."""
    samples = make_samples(20)
    write_shards(samples, tmp_path / "old", shard_bytes=4000)
    write_shards([*samples[:12], *make_samples(5, first=100)], tmp_path / "new", shard_bytes=4000)
    address = object_store.put_folder(tmp_path / "old", "train")
    place = open_folder(address, tmp_path / "cache", "run").local
    old = sorted((tmp_path / "old").glob("*.mds"))
    for path in old:
        (place / path.name).write_bytes(path.read_bytes())
    (place / "lengths").mkdir()
    (place / "lengths" / "tokens.npy").write_bytes(b"of the old shards")

    open_folder(address, tmp_path / "cache", "run")
    assert len(list(place.glob("*.mds"))) == len(old)
    assert (place / "lengths" / "tokens.npy").exists()

    object_store.put_folder(tmp_path / "new", "train")
    assert open_folder(address, tmp_path / "cache", "run").local == place
    left = {path.name for path in place.rglob("*") if path.is_file()} - {".owner", "index.json"}
    new = {path.name: path.read_bytes() for path in (tmp_path / "new").glob("*.mds")}
    same = {path.name for path in old if new.get(path.name) == path.read_bytes()}
    assert left == same
    assert 0 < len(same) < len(old)
    assert (place / "index.json").read_bytes() == (tmp_path / "new" / "index.json").read_bytes()


def test_cached_shards_without_hashes_are_not_trusted_after_a_change(tmp_path: Path) -> None:
    for name, samples in (("old", make_samples(3)), ("new", make_samples(4))):
        write_shards(samples, tmp_path / name, hashes=())
    place = tmp_path / "place"
    (place / ".fresh").mkdir(parents=True)
    (place / "shard.00000.mds").write_bytes(b"?")
    (place / "index.json").write_bytes((tmp_path / "old" / "index.json").read_bytes())
    (place / ".fresh" / "index.json").write_bytes((tmp_path / "new" / "index.json").read_bytes())
    assert cache.sync_index(place, place / ".fresh" / "index.json") == 1
    assert [path.name for path in place.iterdir()] == ["index.json"]


def test_cache_of_a_living_job_is_refused_and_that_of_a_killed_one_taken(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "TAKEN_FOR_S", 0.5)
    write_shards(make_samples(3), tmp_path / "out")
    address = object_store.put_folder(tmp_path / "out", "train")
    script = f"""
import time
from pargo_ds.data.shards.folder import open_folder
print(open_folder({address!r}, {str(tmp_path / "cache")!r}, "run").local, flush=True)
time.sleep(100)
"""
    other = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        place = Path(other.stdout.readline().strip())
        with pytest.raises(
            CacheError,
            match=rf"{place} is in use by process {other.pid} on .* \(run run\); two jobs",
        ):
            open_folder(address, tmp_path / "cache", "run")
        assert open_folder(address, tmp_path / "cache", "another").local != place
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    (place / "shard.00000.mds.77-1.part").write_bytes(b"what it was fetching")
    assert open_folder(address, tmp_path / "cache", "run").local == place
    assert not list(place.glob("*.part"))
    assert open_folder(address, tmp_path / "cache", "run").local == place


def test_default_cache_is_the_users_own_and_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    places = [
        cache.place_of(address, None, run)
        for address in ("s3://bucket/a/train", "s3://other/a/train", "s3://bucket/a_train")
        for run in ("one", "two")
    ]
    assert len(set(places)) == 6
    users = tmp_path / f"pargo_ds_cache_{os.getuid()}"
    assert all(place.parent.parent == users for place in places)
    assert users.stat().st_mode & 0o077 == 0
    users.rmdir()
    (tmp_path / "elsewhere").mkdir()
    users.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="belongs to another user"):
        cache.place_of("s3://bucket/a", None, "run")
