"""Progress of an answer -> HTTP: waiting for its end, or server-sent events as it grows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from pargo_ds.serving.answers import Completion
from pargo_ds.serving.engine import Progress
from pargo_ds.serving.refusals import RequestError

News = asyncio.Queue[Progress | RequestError]
"""What a row tells of itself."""


async def finished(news: News, end: float) -> Progress:
    """Wait for the whole answer. Raises RequestError as `next_progress`."""
    while (progress := await next_progress(news, end)).reason is None:
        pass
    return progress


async def streamed(
    request: web.Request, completion: Completion, news: News, end: float, *, usage: bool
) -> web.StreamResponse:
    """Send an answer as it grows, and with `usage` its numbers of tokens.

    Raises RequestError for a refusal before the first token; a later one becomes an event.
    """
    # A refusal before the first token still has a status of its own.
    progress = await next_progress(news, end)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    await _write(response, completion.opening(), end)
    shown = 0
    try:
        while True:
            if len(progress.text) > shown or progress.reason is not None:
                await _write(response, completion.piece(progress, shown), end)
                shown = max(shown, len(progress.text))
            if progress.reason is not None:
                break
            progress = await next_progress(news, end)
    except RequestError as error:
        await _write(response, error.body(), end)
        return response
    if usage:
        await _write(response, completion.usage_only(progress), end)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def next_progress(news: News, end: float) -> Progress:
    """Wait for the next progress. Raises RequestError: what the row was told, or 504 when `end` has
    come.
    """
    left = end - asyncio.get_running_loop().time()
    try:
        found = await asyncio.wait_for(news.get(), max(0.0, left))
    except asyncio.TimeoutError as error:
        raise RequestError(504, "no answer within the server's time-out", code="timeout") from error
    if isinstance(found, RequestError):
        raise found
    return found


async def _write(response: web.StreamResponse, body: dict[str, Any], end: float) -> None:
    """Send an event. Raises ConnectionResetError when the client does not take it by `end`, or in a
    second where that is past.
    """
    data = f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()
    left = end - asyncio.get_running_loop().time()
    try:
        await asyncio.wait_for(response.write(data), max(1.0, left))
    except asyncio.TimeoutError as error:
        raise ConnectionResetError("the client does not read its answer") from error
