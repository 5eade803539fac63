"""A lock keeps other processes out until its holder dies, and a file system without locks is told
apart from a holder.
"""

import errno
import fcntl
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.data.shards.cache import lock_cache_dir
from pargo_ds.errors import CacheError
from pargo_ds.files.lock import NoLocksError, lock, lock_if_possible, unlock

HOLD = (
    "import sys\nfrom pargo_ds.files.lock import lock\n"
    "file = open(sys.argv[1], 'a')\nprint(lock(file), flush=True)\nsys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")  # as Lustre without `flock`

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_lock_keeps_others_out_until_its_holder_is_killed(tmp_path, holder):
    with open(tmp_path / "lock", "a") as file:
        assert not lock(file)
        assert not lock_if_possible(file, 0.3)
        holder.kill()
        holder.wait()
        assert lock_if_possible(file)


def test_an_unlocked_file_is_free_while_it_is_open(tmp_path):
    with open(tmp_path / "lock", "a") as file, open(tmp_path / "lock", "a") as other:
        assert lock(file)
        assert not lock(other)
        unlock(file)
        assert lock(other)


def test_a_file_system_without_locks_is_said_and_not_taken_for_a_holder(tmp_path, no_locks, caplog):
    with open(tmp_path / "lock", "a") as file:
        with pytest.raises(NoLocksError):
            lock(file)
        with caplog.at_level(logging.WARNING):
            assert lock_if_possible(file)
    assert f"{tmp_path / 'lock'}: the file system has no locks" in caplog.text
    Ledger(tmp_path / "ledger").close()  # captions may be bought there, by one process
    with pytest.raises(CacheError, match="set data.cache to a folder on a disk of each machine"):
        lock_cache_dir(Path(tmp_path / "cache"), "run")


def test_other_faults_of_the_disk_are_not_taken_for_missing_locks(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with open(tmp_path / "lock", "a") as file, pytest.raises(OSError, match="Input/output"):
        lock_if_possible(file)
