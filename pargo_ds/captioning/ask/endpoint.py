"""One attempt at an OpenAI-compatible endpoint, over HTTP. The key is in no message and no log."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from pargo_ds.captioning.ask.verdict import Verdict, verdict
from pargo_ds.errors import CaptionError

PATH = "/chat/completions"


def check_address(address: str) -> str:
    """Return the address without a slash at its end.

    Raises CaptionError when it is none, or holds a password or query (which would be written into
    logs).
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CaptionError(
            f"the endpoint {address!r} is no address; expected one such as https://api.openai.com/v1"
        )
    if parts.username or parts.password or parts.query:
        raise CaptionError(
            f"the endpoint at {parts.hostname} has a password or a query in its address; give the key "
            "in an environment variable (--key-variable)"
        )
    return address.rstrip("/").removesuffix(PATH)


def read_key(variable: str | None) -> str | None:
    """Return the key that an environment variable holds; None for an endpoint that wants none.

    Raises CaptionError naming the variable, never its value.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise CaptionError(
            f"the environment variable {variable} is empty; set it to the endpoint's key, or leave "
            "--key-variable out for an endpoint that wants none"
        )
    if not key.isascii() or any(letter.isspace() for letter in key):
        raise CaptionError(f"{variable} holds blanks or other letters than a key has")
    return key


class Endpoint:
    """An endpoint at `address` (…/v1), with the key that opens it.

    `timeout_s`: longest wait for one answer. Use as an asynchronous context manager.
    """

    def __init__(
        self, address: str, key: str | None = None, *, timeout_s: float = 120, connections: int = 16
    ) -> None:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise CaptionError(
                "asking an endpoint needs httpx: pip install pargo-ds[caption]"
            ) from error
        self.address, self._key = check_address(address), key
        headers = {}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._httpx = httpx
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=min(20, timeout_s), pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers=headers,
        )

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, body: dict[str, Any]) -> Verdict:
        """Send one request; never raises for what the network or the endpoint does."""
        httpx = self._httpx
        try:
            answer = await self._client.post(f"{self.address}{PATH}", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            # Nothing was sent, so nothing was paid.
            return Verdict("again", self.clean(f"no connection ({error or type(error).__name__})"))
        except httpx.TimeoutException:
            return Verdict("unknown", "no answer within the time-out")
        except httpx.HTTPError as error:
            said = f"the connection broke ({type(error).__name__}: {error})"
            return Verdict("unknown", self.clean(said))
        found = verdict(answer.status_code, answer.headers, answer.content)
        return Verdict(**{**vars(found), "reason": self.clean(found.reason)})

    def clean(self, text: str) -> str:
        """Return a text without the key, should an endpoint repeat it."""
        if not self._key:
            return text
        return text.replace(self._key, "[key]")
