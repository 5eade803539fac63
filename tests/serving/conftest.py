"""A tiny random ParGo behind the endpoint, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from pargo_ds.serving.engine import Engine, Row


@pytest.fixture
def engine(tiny_pargo) -> Engine:
    return Engine(*tiny_pargo)


@dataclass
class Endpoint:
    """A running endpoint: `url` ends in /v1; `added` are the rows that were handed to the model."""

    url: str
    service: Any
    added: list[Row]


@pytest.fixture
def serving(engine) -> Callable[..., Any]:
    """`with serving(key=None, rows=16, **limits) as endpoint`."""
    pytest.importorskip("aiohttp")

    @contextmanager
    def start(
        key: str | None = None, rows: int = 16, tokens: int = 32768, **limits: Any
    ) -> Iterator[Endpoint]:
        from aiohttp import web

        from pargo_ds.serving.batching import Batcher
        from pargo_ds.serving.service import Limits, Service

        loop, added = asyncio.new_event_loop(), []
        batcher = Batcher(engine, rows=rows, tokens=tokens)
        service = Service(engine, batcher, Limits(**limits), "tiny", key)
        hand_over = batcher.add

        def noting(row: Row) -> None:
            added.append(row)
            hand_over(row)

        batcher.add = noting

        async def begin() -> web.AppRunner:
            runner = web.AppRunner(
                service.application(), handler_cancellation=True, shutdown_timeout=1
            )
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return runner

        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(begin(), loop).result()
        try:
            port = runner.addresses[0][1]
            yield Endpoint(f"http://127.0.0.1:{port}/v1", service, added)
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    return start
