"""Shared memory of StreamingDatasets: whose it is, and the removal of what killed jobs left behind."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import socket
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN
from streaming.base.shared import SharedMemory, _get_path

OWNER = "pargo_ds_owner"
HOLDERS = "pargo_ds_holders"
"""Shared array of ours beside streaming's."""


def name_ranks_of_this_node() -> None:
    """Set LOCAL_WORLD_SIZE, which streaming reads and torchrun sets; the deepspeed launcher calls it LOCAL_SIZE.

    Raises ValueError when the launcher does not say how many ranks this machine runs.
    """
    if "LOCAL_WORLD_SIZE" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if "LOCAL_SIZE" not in os.environ:
        raise ValueError(
            "LOCAL_WORLD_SIZE (ranks on this machine) is not set though WORLD_SIZE is; start with the deepspeed "
            "launcher or torchrun, or export it"
        )
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["LOCAL_SIZE"]


START_TIMEOUT_S = 60


@contextlib.contextmanager
def one_start_at_a_time(leader: bool) -> Iterator[None]:
    """In here the leader of a machine's ranks is the only one of this user who looks for free names in shared memory.

    streaming takes the first free prefix without a lock, and of four jobs that started together one in four failed with
    FileExistsError (streaming#901). After a minute the leader goes on without the lock: two jobs over several machines
    could otherwise wait for each other.
    """
    if not leader:
        yield
        return
    name = f"pargo_ds_start_{socket.gethostname()}_{os.getuid()}"  # machines may share their folder for temporary files
    with open(Path(tempfile.gettempdir()) / name, "a") as file:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        yield


def _owner_path(prefix: int) -> Path:
    return Path(tempfile.gettempdir()) / _get_path(prefix, OWNER)


def own_prefix(prefix: int) -> int:
    """Hold a lock that says "alive" for this prefix of shared memory; the system frees it even after SIGKILL.

    Returns the open descriptor. The file takes its name when it is locked already: another job's clean-up never finds
    it free.
    """
    descriptor, unnamed = tempfile.mkstemp(prefix="pargo_ds_")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.rename(unnamed, _owner_path(prefix))
    # streaming passes by a prefix whose lock file is there; else each new dataset opens the memory of all others and
    # keeps it open.
    _lock_path(prefix).touch()
    return descriptor


def _lock_path(prefix: int) -> Path:
    return Path(tempfile.gettempdir()) / _get_path(prefix, BARRIER_FILELOCK)


def release_with(reader: Any, memories: list[SharedMemory], prefix: int, owner: int | None) -> None:
    """Give a reader's shared memory back when the reader goes, in the process that made it.

    streaming keeps it to the end of the process: 14 descriptors for each dataset that was ever made.
    """
    weakref.finalize(reader, _release, os.getpid(), memories, prefix, owner)


def _release(pid: int, memories: list[SharedMemory], prefix: int, owner: int | None) -> None:
    if os.getpid() != pid:  # a forked worker that ends
        return
    for memory in memories:
        atexit.unregister(memory.cleanup)
        with contextlib.suppress(BufferError, FileNotFoundError):
            memory.cleanup()
    if owner is not None:
        _lock_path(prefix).unlink(missing_ok=True)
        _owner_path(prefix).unlink(missing_ok=True)
        os.close(owner)


def remove_stale_shared_memory() -> None:
    """Remove shared memory and lock files that killed readers of ours left behind; those of live ones stay.

    streaming's own clean-up takes everything, running jobs included, and stops at the first gap.
    """
    for path in Path(tempfile.gettempdir()).glob(f"*_{OWNER}"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except (PermissionError, FileNotFoundError):  # another user's, or cleaned by another job just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its owner lives
            continue
        else:
            prefix = int(path.name.partition("_")[0])
            path.unlink(missing_ok=True)
            # streaming takes a prefix when all its names are free: what it looks for first goes last.
            for name in (HOLDERS, *reversed(SHM_TO_CLEAN)):
                (Path("/dev/shm") / _get_path(prefix, name)).unlink(missing_ok=True)
            for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
                (path.parent / _get_path(prefix, name)).unlink(missing_ok=True)
        finally:
            os.close(descriptor)
