"""Locks on open files, between the processes of all machines that see the file.

The system frees a lock when the last process that has the file open ends, also after kill -9. A
child that was forked has it open, too.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import time
from typing import IO, Any

log = logging.getLogger("pargo_ds")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer: Lustre without the mount option `flock` answers ENOSYS,
NFS without its lock service ENOLCK.
"""
TICK_S = 0.2
"""Seconds between two attempts of a process that waits."""


class NoLocksError(OSError):
    """The file system has no locks."""


def lock(file: IO[Any] | int, wait_s: float = 0) -> bool:
    """Lock an open file, or a descriptor, for this process. Return False if another process still
    has the lock after `wait_s` seconds.

    Raises NoLocksError.
    """
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(TICK_S)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise NoLocksError(error.errno, "the file system has no locks") from error
        else:
            return True


def lock_if_possible(file: IO[Any], wait_s: float = math.inf) -> bool:
    """Lock an open file as `lock` does, which by default waits as long as it takes. Where the file
    system has no locks, that is logged and the work goes on: the user may still do it once only.
    """
    try:
        return lock(file, wait_s)
    except NoLocksError:
        log.warning("%s: the file system has no locks; do not start this twice at once", file.name)
        return True


def unlock(file: IO[Any]) -> None:
    """Free a lock before the file is closed: a forked child may have the file open for longer."""
    fcntl.flock(file, fcntl.LOCK_UN)
