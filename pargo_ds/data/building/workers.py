"""Worker processes that build chunks. They end with their parent, and the death of one is an
error.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from pargo_ds.data.building.chunk import build_chunk
from pargo_ds.data.building.plan import Plan
from pargo_ds.data.sources import Chunk
from pargo_ds.errors import BuildError

Done = tuple[int, dict[str, Any]]
"""Weight and counts of a finished chunk."""


class Workers:
    """Builds chunks in `workers` processes and yields the counts of each finished chunk. With one
    worker, this process builds the chunks.
    """

    def __init__(self, plan: Plan, folder: Path, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers; expected at least 1")
        self.plan, self.folder, self.workers = plan, folder, workers
        self.pool: ProcessPoolExecutor | None = None
        self.waiting: dict[Future[dict[str, Any]], int] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.pool is None:
            return
        processes = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for process in processes:
                process.terminate()  # the next start builds their unfinished chunks again

    def submit(self, number: int, chunk: Chunk) -> Iterator[Done]:
        """Submit one chunk and yield finished ones. It waits for a chunk to finish if enough chunks
        are submitted to keep all processes busy.
        """
        if self.workers == 1:
            yield chunk.weight, build_chunk(self.plan, self.folder, number, chunk.payload)
            return
        if self.pool is None:
            # Spawned: a fork of a process with threads (tqdm's, numpy's) can lock up.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(
                self.workers, context, _start_worker, (self.plan, self.folder)
            )
        self.waiting[self.pool.submit(_in_worker, number, chunk.payload)] = chunk.weight
        if len(self.waiting) >= 2 * self.workers:  # more payloads would only take memory
            yield from self._ended()

    def finish(self) -> Iterator[Done]:
        """Wait for the remaining chunks and yield them as they finish."""
        while self.waiting:
            yield from self._ended()

    def _ended(self) -> Iterator[Done]:
        done, _ = wait(self.waiting, return_when=FIRST_COMPLETED)
        for future in done:
            weight = self.waiting.pop(future)
            try:
                yield weight, future.result()
            except BrokenExecutor as error:
                raise BuildError(
                    "a worker process died (killed by the system for want of memory?). Finished chunks are kept: the "
                    "same command goes on; give fewer --workers"
                ) from error


_given: tuple[Plan, Path] | None = None


def _start_worker(plan: Plan, folder: Path) -> None:
    global _given
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    # Pillow warns of odd images that it can read.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _given = (plan, folder)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_worker(number: int, payload: Any) -> dict[str, Any]:
    assert _given is not None, "the pool's initializer sets it"
    return build_chunk(*_given, number, payload)
