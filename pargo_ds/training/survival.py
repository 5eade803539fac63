"""How a run ends: asked to stop, stuck, or failed; and what it leaves behind to tell which.

`state.json` in the run's folder says how the run stands, for scripts that only see a launcher's
exit status: {"state": "running" | "interrupted" | "done" | "failed", "step": ..., "reason": ...,
"restart": whether it would help}.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import logging
import os
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

from pargo_ds import distributed
from pargo_ds.files.whole_file import write_whole

log = logging.getLogger("pargo_ds")

DONE, FAILED, DO_NOT_RESTART = 0, 1, 2
"""Exit statuses.

Interrupted is 0 too: the run did what it was asked to; state.json tells the two apart.
"""
STATE, STOP, FAILURE = "state.json", "STOP", "failure.txt"
STATE_BYTES = 4096
"""Size of state.json, filled up with blanks: a full disk has room for its last word, in the place
of the one before.
"""
SUBMITTED = "PARGO_SUBMITTED"
"""Environment: when the run was asked for (seconds since 1970), if that was long before its
processes began (Slurm).
"""


class StopRequest:
    """Whether this process was asked to stop: by SIGTERM, by the run's own signal, or by a file
    STOP in its folder.

    Signals only leave a note, so a second one does not disturb the save that the first one led to.
    """

    FILE_REASON = f"the file {STOP}"

    def __init__(self, run_dir: Path, own_signal: str) -> None:
        self.file = run_dir / STOP
        self.reason: str | None = None
        for name in ("SIGTERM", f"SIG{own_signal}"):
            signal.signal(getattr(signal, name), self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def asked(self) -> bool:
        """Whether this rank knows of a request (rank 0 also looks for the file); ranks must agree
        before they act.
        """
        if self.reason is None and distributed.is_main() and self.file.exists():
            self.reason = self.FILE_REASON
        return self.reason is not None

    def forget_file(self) -> None:
        """Remove the file: the request was obeyed."""
        if distributed.is_main():
            self.file.unlink(missing_ok=True)

    def forget_old_file(self) -> None:
        """Remove a file that was left over from before this start was asked for; a younger one is
        meant for it.
        """
        asked_for = float(os.environ.get(SUBMITTED) or psutil.Process().create_time())
        with contextlib.suppress(FileNotFoundError):
            if distributed.is_main() and self.file.stat().st_mtime < asked_for:
                self.file.unlink()
                log.info("removed a file %s that was left over", STOP)


class Watchdog:
    """Ends a process that makes no progress, after writing the stack of each of its threads.

    A rank that waits in a collective for ever cannot help itself, and its launcher sees it alive.
    faulthandler's own thread does the watching, outside of Python's lock. Every rank has one: the
    stacks of all lie side by side.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seconds = minutes * 60
        self.path = folder / f"stacks_rank_{distributed.rank():05d}.txt"
        self.file = self.path.open("w")

    def heartbeat(self) -> None:
        """Note that progress was made: the time begins anew."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)

    def close(self) -> None:
        """Stop watching; an empty file is removed."""
        faulthandler.cancel_dump_traceback_later()
        self.file.close()
        if self.path.stat().st_size == 0:
            self.path.unlink()


def write_state(
    run_dir: Path, state: str, *, step: int | None = None, reason: str = "", restart: bool = True
) -> None:
    """Write state.json in one rename (any rank; the last word counts); where that finds no room, in
    place.
    """
    body = {"state": state, "step": step, "reason": reason, "restart": restart, "time": time.time()}
    try:
        write_whole(run_dir / STATE, _filled_up(body), writer=str(distributed.rank()))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        body["reason"] = reason[: STATE_BYTES // 16]  # escaped, a character may take twelve bytes
        with open(run_dir / STATE, "r+") as file:
            file.write(_filled_up(body))


def _filled_up(body: dict[str, Any]) -> str:
    """One line of JSON of at least STATE_BYTES."""
    return json.dumps(body).ljust(STATE_BYTES - 1) + "\n"


def mark_running(run_dir: Path, stop: StopRequest) -> None:
    """Forget how the run stood before, on rank 0."""
    stop.forget_old_file()
    if distributed.is_main():
        (run_dir / FAILURE).unlink(missing_ok=True)
        write_state(run_dir, "running")


def first_to_fail(run_dir: Path, error: BaseException) -> bool:
    """Whether this rank is the first of all to fail; its traceback goes into failure.txt, and only
    it should print.

    When one rank dies the others fail in their collectives: their tracebacks would bury the one
    that matters.
    """
    try:
        with open(run_dir / FAILURE, "x") as file:
            file.write(f"rank {distributed.rank()}, pid {os.getpid()}\n")
            traceback.print_exception(error, file=file)
    except FileExistsError:
        return False
    except OSError:  # a full disk must not hide the error itself
        return True
    return True
