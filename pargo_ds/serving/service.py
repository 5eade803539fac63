"""The endpoint: HTTP -> chats -> rows, and progress -> HTTP. One place for limits and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from pargo_ds.serving.answers import Completion
from pargo_ds.serving.batching import Batcher
from pargo_ds.serving.chat import Chat, read_chat
from pargo_ds.serving.engine import Engine, Progress, Row
from pargo_ds.serving.image_addresses import PROXIED, ServerAddress, read_address
from pargo_ds.serving.refusals import RequestError
from pargo_ds.serving.streaming import News, finished, streamed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how many there may be."""

    body_bytes: int = 20_000_000
    images: int = 8
    """Of one request."""
    tokens: int = 1024
    """Of one answer; what an answer gets that asks for no number."""
    requests: int = 64
    """At once, those that wait included; one more is told to come again."""
    timeout_s: float = 300
    """For the request's body, and from its first byte to the end of the answer."""
    addresses: bool = True
    """Take http(s) addresses of images on the server's own host."""


class Service:
    """The endpoint's handlers. `key` opens it; None leaves it open."""

    def __init__(
        self, engine: Engine, batcher: Batcher, limits: Limits, model: str, key: str | None = None
    ) -> None:
        self.engine, self.batcher, self.limits, self.model = engine, batcher, limits, model
        self._key = key
        self.begun = int(time.time())
        self.places = 0
        """Requests that are being served now."""

    def application(self) -> web.Application:
        """Return the endpoint as an application of aiohttp."""
        application = web.Application(
            client_max_size=self.limits.body_bytes, middlewares=[told_as_json, self.locked]
        )
        application.router.add_get("/health", self.health)
        application.router.add_get("/v1/models", self.models)
        application.router.add_get("/v1/models/{name:.+}", self.one_model)
        application.router.add_post("/v1/chat/completions", self.chat)
        application.cleanup_ctx.append(self._running)
        return application

    async def _running(self, application: web.Application) -> AsyncIterator[None]:
        work = asyncio.create_task(self.batcher.work())
        self.decoding = ThreadPoolExecutor(1, thread_name_prefix="images")
        # No proxy of the environment: an address of this host is asked here and nowhere else.
        self.session = aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        yield
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        self.decoding.shutdown(wait=False)
        await self.session.close()

    @web.middleware
    async def locked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuses requests without the key, but for /health."""
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = sent.encode(errors="surrogateescape")  # whatever bytes the header holds
        if self._key is None or request.path == "/health":
            return await handler(request)
        if not hmac.compare_digest(given, self._key.encode()):
            raise RequestError(401, "the API key is missing or wrong", code="invalid_api_key")
        return await handler(request)

    async def health(self, request: web.Request) -> web.Response:
        """Whether it serves, and how busy it is."""
        waiting, running = len(self.batcher.waiting), len(self.batcher.running)
        return web.json_response({"status": "ok", "waiting": waiting, "running": running})

    async def models(self, request: web.Request) -> web.Response:
        """Answer with the one model there is."""
        return web.json_response({"object": "list", "data": [self._model()]})

    async def one_model(self, request: web.Request) -> web.Response:
        """Answer with the model, asked for by its name."""
        if request.match_info["name"] != self.model:
            raise RequestError(404, f"there is one model: '{self.model}'", code="model_not_found")
        return web.json_response(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": self.begun,
            "owned_by": "pargo_ds",
            "max_model_len": self.engine.context,
        }

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer with a chat completion, whole or as server-sent events."""
        with self._place():
            end = asyncio.get_running_loop().time() + self.limits.timeout_s
            chat = read_chat(
                await self._body(request),
                model=self.model,
                most_tokens=self.limits.tokens,
                most_images=self.limits.images,
            )
            row, news = await self._row(chat, request)
            try:
                self.batcher.add(row)
                completion = Completion(self.model, len(row.ids))
                if chat.stream:
                    return await streamed(request, completion, news, end, usage=chat.usage)
                return web.json_response(completion.whole(await finished(news, end)))
            finally:
                row.gone = True  # a client that went away, or a time-out, frees the row

    async def _body(self, request: web.Request) -> bytes:
        try:
            return await asyncio.wait_for(request.read(), self.limits.timeout_s)
        except asyncio.TimeoutError as error:
            raise RequestError(408, "the request's body did not come in time") from error

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self.places >= self.limits.requests:
            raise RequestError(
                429,
                f"{self.places} requests are being served: try again in a moment",
                code="rate_limit_exceeded",
                retry_after_s=1,
            )
        self.places += 1
        try:
            yield
        finally:
            self.places -= 1

    async def _row(self, chat: Chat, request: web.Request) -> tuple[Row, News]:
        loop = asyncio.get_running_loop()
        news: News = asyncio.Queue()
        # The ids first: a conversation that does not fit is refused before its images are read.
        ids = await loop.run_in_executor(self.decoding, self.engine.ids, chat)
        server, pixels = self._server_address(request), []
        for address in chat.addresses:
            data = await read_address(self.session, address, server, self.limits.body_bytes)
            pixels.append(await loop.run_in_executor(self.decoding, self.engine.pixels, data))

        def tell(what: Progress | RequestError) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(news.put_nowait, what)

        return Row(ids, pixels, chat.settings, chat.stream, tell), news

    def _server_address(self, request: web.Request) -> ServerAddress:
        name = request.transport.get_extra_info("sockname") if request.transport else None
        proxied = any(header in request.headers for header in PROXIED)
        if name is None or proxied or not self.limits.addresses:
            return ServerAddress(None, None)
        with contextlib.suppress(ValueError):
            return ServerAddress(URL(f"http://{request.host}").host, name[0])
        return ServerAddress(None, None)


@web.middleware
async def told_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every refusal in OpenAI's form; a fault of the server says nothing of its inside."""
    try:
        return await handler(request)
    except RequestError as error:
        found = error
    except web.HTTPRequestEntityTooLarge:
        found = RequestError(413, "the request's body is too large")
    except web.HTTPException as error:
        found = RequestError(error.status, f"{request.method} {request.path}: {error.reason}")
    except ConnectionResetError:
        raise
    except Exception:
        logger.exception("a request failed")
        found = RequestError(500, "the server failed; its log says how")
    return web.json_response(found.body(), status=found.status, headers=found.headers)
