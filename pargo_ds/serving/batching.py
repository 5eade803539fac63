"""Requests that wait -> batches: in their order, as many at once as fit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pargo_ds.serving.engine import Engine, Row


def how_many(longest: Sequence[int], *, rows: int, tokens: int) -> int:
    """Return how many of the first requests make a batch; one at least.

    `longest`: tokens that each may come to; the batch has at most `rows` of them, and rows x the
    longest at most `tokens`.

    Example: longest [20, 30, 90], rows 4, tokens 100 -> 2
    """
    count = 1
    while count < min(rows, len(longest)):
        if (count + 1) * max(longest[: count + 1]) > tokens:
            break
        count += 1
    return count


class Batcher:
    """Hands batches to the engine, in one thread, one after another.

    A request that comes while a batch is answered waits for its end; each answer is told as soon as
    it is complete.
    """

    def __init__(self, engine: Engine, *, rows: int, tokens: int) -> None:
        self.engine, self.rows, self.tokens = engine, rows, tokens
        self.waiting: deque[Row] = deque()
        self.running: Sequence[Row] = ()
        self._news = asyncio.Event()

    def add(self, row: Row) -> None:
        """Put a request at the end of those that wait."""
        self.waiting.append(row)
        self._news.set()

    def next_batch(self) -> list[Row]:
        """Take the next batch from those that wait; requests that nobody waits for are dropped."""
        here = [row for row in self.waiting if not row.gone]
        count = 0
        if here:
            longest = [row.longest for row in here]
            count = how_many(longest, rows=self.rows, tokens=self.tokens)
        self.waiting = deque(here[count:])
        return here[:count]

    async def work(self) -> None:
        """Answer requests until it is cancelled, which ends the batch at its next token."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="model") as pool:
            try:
                while True:
                    await self._news.wait()
                    self.running = self.next_batch()
                    if self.running:
                        await loop.run_in_executor(pool, self.engine.run, self.running)
                    else:
                        self._news.clear()
            finally:
                for row in [*self.running, *self.waiting]:
                    row.gone = True
