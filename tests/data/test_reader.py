"""The reader gives exactly the rows it is asked for, from several folders, or an error that names
the shard.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from rows import Rows, contents, damage, names, read, read_all, write
from torch.utils.data import DataLoader

from pargo_ds.data.shards import shard_cache
from pargo_ds.data.shards.folder import open_folder
from pargo_ds.data.shards.reader import SampleReader
from pargo_ds.data.shards.s3 import never
from pargo_ds.data.shards.shard_cache import ShardCache, turn
from pargo_ds.data.shards.shard_files import Shard, shards_of
from pargo_ds.errors import ShardError

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """50 samples, 30 packed ones and 20 more, numbered through."""
    return [
        write(tmp_path / "a", 50),
        write(tmp_path / "b", 30, first=50, compression="zstd"),
        write(tmp_path / "c", 20, first=80),
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_several_folders_come_in_the_order_asked_for(
    folders: list[Path], tmp_path: Path, workers: int
) -> None:
    reader = SampleReader([open_folder(folder, tmp_path / "cache", "run") for folder in folders])
    assert len(reader) == 100
    rng = np.random.default_rng(0)
    for _ in range(3):
        chunk = rng.integers(0, 100, 70)
        if workers:
            assert read_all(
                DataLoader(Rows(reader, chunk), batch_size=None, num_workers=workers)
            ) == names(chunk)
        else:
            assert read(reader, chunk) == names(chunk)
    assert read(reader, chunk[:0]) == []


def test_packed_local_folder_is_never_written_to(folders: list[Path], tmp_path: Path) -> None:
    before = contents(folders[1])
    folder = open_folder(folders[1], tmp_path / "cache", "run")
    assert read(SampleReader([folder]), np.arange(30)) == names(np.arange(50, 80))
    assert contents(folders[1]) == before
    assert {path.suffix for path in folder.local.iterdir()} <= {".mds", ".json", ".lock", ""}


def test_plain_local_folder_is_read_where_it_is(folders: list[Path], tmp_path: Path) -> None:
    folder = open_folder(folders[0], tmp_path / "cache", "run")
    assert folder.local == folders[0]
    assert folder.remote is None
    before = contents(folders[0])
    read(SampleReader([folder]), np.arange(50))
    assert contents(folders[0]) == before
    assert not (tmp_path / "cache").exists()


def test_a_folder_comes_once(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match="comes twice"):
        SampleReader([open_folder(folders[0]), open_folder(folders[0])])


@pytest.mark.parametrize("fault", ["damaged", "missing", "truncated"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_bad_shard_raises_and_does_not_end_silently(
    folders: list[Path], tmp_path: Path, fault: str, workers: int
) -> None:
    """In streaming alone: the epoch ends early with exit status 0, or other workers hang."""
    bad = sorted(folders[0].glob("*.mds"))[2]
    damage(bad, fault)
    reader = SampleReader([open_folder(folders[0]), open_folder(folders[2])])
    loader = DataLoader(Rows(reader, np.arange(70)), batch_size=None, num_workers=workers)
    with pytest.raises(
        ShardError, match=f"{bad.name} is {'missing' if fault == 'missing' else 'damaged'}"
    ):
        read_all(loader)
    with pytest.raises(ShardError, match=bad.name):
        read(SampleReader([open_folder(folders[0])]), np.arange(50))


@pytest.mark.parametrize("fault", ["damaged", "missing", "truncated"])
def test_bad_packed_shard_is_named(folders: list[Path], tmp_path: Path, fault: str) -> None:
    bad = sorted(folders[1].glob("*.zstd"))[1]
    damage(bad, fault)
    reader = SampleReader([open_folder(folders[1], tmp_path / "cache", "run")])
    with pytest.raises(
        ShardError, match=f"{bad} is {'missing' if fault == 'missing' else 'damaged'}"
    ):
        read(reader, np.arange(30))


def test_shards_without_hashes_are_compared_by_size(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 30, hashes=())
    assert read(SampleReader([open_folder(folder)]), np.arange(30)) == names(np.arange(30))
    bad = sorted(folder.glob("*.mds"))[1]
    damage(bad, "truncated")
    with pytest.raises(
        ShardError, match=rf"{bad.name} is damaged: it has \d+ bytes where index.json says \d+"
    ):
        read(SampleReader([open_folder(folder)]), np.arange(30))


def test_limit_never_deletes_the_only_copy(folders: list[Path]) -> None:
    """streaming: all shards of the folder are gone, then the epoch ends with exit status 0."""
    before = contents(folders[0])
    with pytest.raises(
        ValueError,
        match=r"data.cache_limit: 20kb would delete shards of .*/a, which are not in a cac",
    ):
        SampleReader([open_folder(folders[0])], cache_limit="20kb")
    assert contents(folders[0]) == before


def test_limit_beside_a_plain_folder_deletes_cached_shards_only(
    folders: list[Path], tmp_path: Path
) -> None:
    before = contents(folders[0])
    packed = open_folder(folders[1], tmp_path / "cache", "run")
    reader = SampleReader([open_folder(folders[0]), packed], cache_limit="20kb")
    order = np.random.default_rng(0).permutation(80)
    assert read(reader, order) == names(order)
    assert contents(folders[0]) == before
    assert sum(path.stat().st_size for path in packed.local.glob("*.mds")) <= 20 << 10


def test_limit_that_is_too_small_says_what_is_enough(folders: list[Path], tmp_path: Path) -> None:
    packed = open_folder(folders[1], tmp_path / "cache", "run")
    with pytest.raises(
        ValueError, match=r"data.cache_limit: 1024 bytes hold less than four .* to at least \d+b"
    ):
        SampleReader([packed], cache_limit="1kb")
    with pytest.raises(
        ValueError, match="data.cache_limit: 'much' is no size; expected one such as 200gb"
    ):
        SampleReader([packed], cache_limit="much")


def test_killed_worker_is_an_error(folders: list[Path]) -> None:
    reader = SampleReader([open_folder(folders[0])])
    rows = iter(
        DataLoader(Rows(reader, np.arange(50), pause_s=0.05), batch_size=None, num_workers=2)
    )
    next(rows)
    os.kill(rows._workers[1].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker .* is killed|exited unexpectedly"):
        list(rows)


def fail_when_others_wait(shard: Shard, held: Event, waiting: list[Event]) -> None:
    with turn(shard):
        held.set()
        for event in waiting:
            event.wait()
        raise ShardError(f"{shard.name}: all is lost")


def test_failure_of_the_process_that_is_waited_for_is_told_at_once(
    folders: list[Path], tmp_path: Path
) -> None:
    """Else many workers would try a store that is down one after another, each for its whole
    patience.
    """
    shards = shards_of(open_folder(folders[1], tmp_path / "cache", "run"))
    cache, held, waiting = ShardCache(shards, None), Event(), [Event(), Event()]
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(fail_when_others_wait, shards[3], held, waiting)
        held.wait()
        # `stop` is asked when the lock was not free; None means to go on.
        others = [threads.submit(cache.prepare, 3, event.set) for event in waiting]
        for one in (first, *others):
            with pytest.raises(ShardError, match=f"{shards[3].name}: all is lost"):
                one.result()
    assert not cache.is_ready(3)
    cache.prepare(3, never)  # an old failure is nobody's
    assert cache.is_ready(3)


def test_wait_for_another_process_has_an_end(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "WAIT_LIMIT_S", 0.5)
    packed = open_folder(folders[1], tmp_path / "cache", "run")
    with (
        turn(shards_of(packed)[3]),
        pytest.raises(ShardError, match=r"shard.00003.mds.zstd was not ready after 0.5 s"),
    ):
        read(SampleReader([packed]), np.arange(30))


def test_shard_that_was_deleted_while_it_is_in_use_is_fetched_again(
    folders: list[Path], tmp_path: Path
) -> None:
    packed = open_folder(folders[1], tmp_path / "cache", "run")
    reader = SampleReader([packed])
    assert read(reader, np.arange(30)) == names(np.arange(50, 80))
    for path in packed.local.glob("*.mds"):
        path.unlink()
    assert read(reader, np.arange(30)) == names(np.arange(50, 80))


def test_stopping_early_and_beginning_again(folders: list[Path]) -> None:
    reader = SampleReader([open_folder(folders[0])])
    for stop in (1, 7, 20):
        rows = reader.rows(np.arange(50))
        assert [next(rows)["id"] for _ in range(stop)] == names(np.arange(stop))
        rows.close()
    assert read(reader, np.arange(50)) == names(np.arange(50))


@pytest.mark.slow
def test_workers_may_be_started_afresh(folders: list[Path], tmp_path: Path) -> None:
    """As the newest Pythons do: nothing is inherited but what a pickle carries."""
    reader = SampleReader([open_folder(folder, tmp_path / "cache", "run") for folder in folders])
    rows = Rows(reader, np.arange(100))
    loader = DataLoader(rows, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert read_all(loader) == names(np.arange(100))


def test_reading_here_and_then_in_forked_workers(folders: list[Path]) -> None:
    """Locks and threads of the parent process are of no use in its children."""
    reader = SampleReader([open_folder(folders[0])])
    assert read(reader, np.arange(20)) == names(np.arange(20))
    loader = DataLoader(Rows(reader, np.arange(50)), batch_size=None, num_workers=2)
    assert read_all(loader) == names(np.arange(50))


def test_killed_reader_leaves_no_shared_memory_and_no_temporary_files(
    folders: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    script = f"""
import os, signal
from pathlib import Path
import numpy as np
from pargo_ds.data.shards.reader import SampleReader
from pargo_ds.data.shards.s3 import never
from pargo_ds.data.shards.folder import open_folder
packed = open_folder({str(folders[1])!r}, {str(tmp_path / "cache")!r}, "run")
rows = SampleReader([packed], cache_limit="20kb").rows(np.arange(30))
next(rows)
opened = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and path.exists()]
mapped = Path("/proc/self/maps").read_text().split()
print([name for name in (*opened, *mapped) if name.startswith("/dev/shm/")], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    killed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout == "[]\n"
    assert not list((tmp_path / "tmp").iterdir())
    again = open_folder(folders[1], tmp_path / "cache", "run")
    assert not list(again.local.rglob("*.part"))
    assert read(SampleReader([again]), np.arange(30)) == names(np.arange(50, 80))
