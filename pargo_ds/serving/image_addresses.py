"""Addresses of images in a request -> bytes: data: URLs, and http(s) on the server's own host.

No address is ever a path of the server's disk. An http(s) address must name the host by which the
client reached the server, and is asked at the very network address on which the client's connection
came in, whatever the name resolves to: so it opens nothing that lies behind another host.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass

import aiohttp
from yarl import URL

from pargo_ds.serving.refusals import RequestError

FETCH_TIMEOUT_S = 20
PROXIED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")
"""Headers that a proxy adds: behind one, the connection's own address is the proxy's business."""


@dataclass(frozen=True)
class ServerAddress:
    """How a client reached this server: the name that it used, and the address of its connection.

    `address` is None where http(s) addresses are not to be asked at all.
    """

    host: str | None
    address: str | None


def data_of(address: str, most_bytes: int) -> bytes:
    """Return the bytes of a data: URL. Raises RequestError, 400 for what is none, 413 for too many
    bytes.
    """
    head, comma, body = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _refused("a data: URL of an image must look like data:image/png;base64,...")
    if len(body) > most_bytes * 4 / 3 + 4:
        raise _too_large(most_bytes)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(f"a data: URL holds no base64 ({error})") from error


def own_address(address: str, server: ServerAddress) -> URL:
    """Return an http(s) address as it may be asked, its host replaced by that of the connection.

    Raises RequestError, 400, for any other address.
    """
    try:
        url = URL(address)
        scheme, host, _ = url.scheme, url.host, url.port
    except ValueError as error:
        raise _refused("an address of an image is malformed") from error
    if scheme not in ("http", "https") or not host:
        raise _refused(
            "an image's address is neither a data: URL nor an http(s) address of this server's host"
        )
    if server.address is None:
        raise _refused("this server takes images as data: URLs only")
    if url.user is not None or url.password is not None:
        raise _refused("an address of an image holds a user's name or password")
    if server.host is None or host.lower() != server.host.lower():
        raise _refused("an image lies on another host than this server; send it as a data: URL")
    return url.with_host(server.address)


async def read_address(
    session: aiohttp.ClientSession, address: str, server: ServerAddress, most_bytes: int
) -> bytes:
    """Read the bytes behind an address; redirects are not followed.

    Raises RequestError: 400 for an address that may not or cannot be read, 413 for too many bytes.
    """
    if address[:5].lower() == "data:":
        return data_of(address, most_bytes)
    url = own_address(address, server)
    try:
        async with session.get(
            url,
            headers={"Host": URL(address).authority},
            server_hostname=server.host if url.scheme == "https" else None,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S),
        ) as answer:
            if answer.status != 200:
                raise _refused(
                    f"the address of an image answers with the status {answer.status}; redirects "
                    "are not followed"
                )
            data = bytearray()
            async for piece in answer.content.iter_chunked(1 << 16):
                data += piece
                if len(data) > most_bytes:
                    raise _too_large(most_bytes)
            return bytes(data)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise _refused("the address of an image cannot be read") from error


def _refused(reason: str) -> RequestError:
    return RequestError(400, reason, param="messages", code="invalid_image_url")


def _too_large(most_bytes: int) -> RequestError:
    return RequestError(413, f"an image has more than {most_bytes:,} bytes", param="messages")
