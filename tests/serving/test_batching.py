"""Which of the waiting requests make the next batch."""

from __future__ import annotations

import asyncio

import pytest

from pargo_ds.serving.batching import Batcher, how_many
from pargo_ds.serving.chat import Settings
from pargo_ds.serving.engine import Row


@pytest.mark.parametrize(
    "longest, rows, tokens, count",
    [
        ([20, 30, 90], 4, 100, 2),
        ([20, 30, 90], 4, 270, 3),
        ([20, 30, 90], 2, 1000, 2),
        ([500], 4, 100, 1),  # larger than the budget, but alone
        ([500, 1], 4, 100, 1),
        ([1, 500], 4, 100, 1),
    ],
)
def test_a_batch_is_what_fits_in_the_order_of_arrival(longest, rows, tokens, count):
    assert how_many(longest, rows=rows, tokens=tokens) == count


def row(prompt: int = 4) -> Row:
    return Row([1] * prompt, [], Settings(max_tokens=4), False, lambda progress: None)


class Noting:
    """An engine that notes its batches and answers nothing."""

    def __init__(self) -> None:
        self.batches: list[list[Row]] = []

    def run(self, rows: list[Row]) -> None:
        self.batches.append(list(rows))


def test_every_request_comes_once_in_its_order_and_those_given_up_do_not():
    rows = [row() for _ in range(7)]
    rows[2].gone = True
    noting = Noting()

    async def go() -> None:
        batcher = Batcher(noting, rows=3, tokens=1000)
        for one in rows:
            batcher.add(one)
        work = asyncio.create_task(batcher.work())
        while batcher.waiting or batcher.running:
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(go())
    seen = [one for batch in noting.batches for one in batch]
    assert [id(one) for one in seen] == [id(one) for one in rows if one is not rows[2]]
    assert [len(batch) for batch in noting.batches] == [3, 3]
