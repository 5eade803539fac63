"""Download images from the web: through http and https only, not from private addresses, and within
limits of size and time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import quote, urljoin, urlsplit

from pargo_ds.data.sources.rejects import Reject, shortened

AGENT = "pargo_ds (image data set builder)"
REDIRECTS = (301, 302, 303, 307, 308)
FORBIDDEN = {"noai", "noimageai", "noindex", "noimageindex"}
"""Words in the header X-Robots-Tag by which a server forbids the use of an image."""
MAX_SECONDS = 86400
PORTS = {"http": 80, "https": 443}
TYPES = ("image/", "application/octet-stream", "binary/octet-stream")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """The limits of one download: its bytes, its duration in seconds (with redirects, without name
    look-ups) and its redirects; and the number of threads that download.
    """

    max_bytes: int = 1 << 25
    seconds: float = 20.0
    redirects: int = 5
    allow_private: bool = False
    threads: int = 16

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.threads) <= 0 or self.redirects < 0:
            raise ValueError(f"limits of downloads must be positive; found {self}")
        if not 0 < self.seconds <= MAX_SECONDS:
            raise ValueError(
                f"{self.seconds} seconds for a download; expected more than 0 and at most {MAX_SECONDS}"
            )


def fetch(url: object, limits: FetchLimits) -> bytes:
    """Download a URL and return the bytes. Raises Reject with the reason for every failure."""
    if not isinstance(url, str):
        raise Reject("image missing", f"the URL is {shortened(url)}; expected text")
    deadline = time.monotonic() + limits.seconds
    current = url.strip()
    try:
        for _ in range(limits.redirects + 1):
            found = _get(current, limits, deadline)
            if isinstance(found, bytes):
                return found
            current = urljoin(current, found)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Reject(
            "not fetched", f"{shortened(current)}: {type(error).__name__}: {shortened(str(error))}"
        ) from error
    raise Reject("not fetched", f"{shortened(url)}: more than {limits.redirects} redirects")


def _get(url: str, limits: FetchLimits, deadline: float) -> bytes | str:
    """Return the body of one answer, or the address to which it redirects."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise Reject("not fetched", f"{shortened(url)}: only http and https are fetched")
    port = parts.port or PORTS[parts.scheme]
    address = _address(parts.hostname, port, limits)
    connection = _Connection(parts.scheme, parts.hostname, port, address, deadline)
    # A server might send single bytes for ever, so that no read ever times out.
    ending = threading.Timer(connection.left(), connection.cut)
    ending.start()
    try:
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        connection.request(
            "GET", _quoted(target), headers={"User-Agent": AGENT, "Accept": "image/*"}
        )
        answer = connection.getresponse()
        if answer.status in REDIRECTS and answer.getheader("Location"):
            return str(answer.getheader("Location"))
        _check_answer(url, answer, limits)
        return _body(url, answer, connection, limits)
    finally:
        ending.cancel()
        connection.close()


def _address(host: str, port: int, limits: FetchLimits) -> str:
    """Return the IP address to connect to. The connection uses the address that was checked here,
    because a second look-up of the name could return another one.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        real = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(real, "ipv4_mapped", None) or getattr(real, "sixtofour", None) or real
        public = real.is_global and mapped.is_global and not real.is_multicast
        if not public and not limits.allow_private:
            raise Reject(
                "not fetched",
                f"{host} has the private address {address}; --allow-private permits it",
            )
    return addresses[0]


class _Connection(http.client.HTTPConnection):
    """A connection to one checked address. `cut` ends every wait for it."""

    def __init__(self, scheme: str, host: str, port: int, address: str, deadline: float) -> None:
        super().__init__(host, port)
        self.default_port = PORTS[scheme]
        self.scheme = scheme
        self.address = address
        self.deadline = deadline
        # http.client sets `sock` to None while the answer is still read, so keep the socket here.
        self.wire: socket.socket | None = None

    def connect(self) -> None:
        """Open the socket to the checked address, with TLS for https."""
        self.sock = self.wire = socket.create_connection(
            (self.address, self.port), timeout=self.left()
        )
        if self.scheme == "https":
            self.sock = self.wire = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.host
            )

    def cut(self) -> None:
        """End the wait of another thread for this connection."""
        if self.wire is not None:
            with contextlib.suppress(OSError):
                # The method of the plain socket: the TLS layer is in use by the other thread.
                socket.socket.shutdown(self.wire, socket.SHUT_RDWR)

    def left(self) -> float:
        """Return the seconds until the deadline. Raises TimeoutError when it has passed."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        return left


def _check_answer(url: str, answer: http.client.HTTPResponse, limits: FetchLimits) -> None:
    if answer.status != 200:
        raise Reject(
            "not fetched", f"{shortened(url)}: answer {answer.status} {shortened(answer.reason)}"
        )
    kind = (answer.getheader("Content-Type") or TYPES[-1]).strip().lower()
    if not kind.startswith(TYPES):
        raise Reject(
            "not fetched", f"{shortened(url)}: the content is {shortened(kind)}; expected an image"
        )
    robots = answer.getheader("X-Robots-Tag") or ""
    words = {word.strip() for word in robots.lower().split(",")}
    if words & FORBIDDEN:
        raise Reject(
            "not fetched",
            f"{shortened(url)}: its server forbids it ({', '.join(words & FORBIDDEN)})",
        )
    length = answer.getheader("Content-Length") or "0"
    if length.isdigit() and int(length) > limits.max_bytes:
        raise Reject(
            "not fetched",
            f"{shortened(url)}: {int(length):,} bytes; at most {limits.max_bytes:,} are read",
        )


def _body(
    url: str, answer: http.client.HTTPResponse, connection: _Connection, limits: FetchLimits
) -> bytes:
    pieces, size = [], 0
    while piece := answer.read1(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > limits.max_bytes:
            raise Reject("not fetched", f"{shortened(url)}: more than {limits.max_bytes:,} bytes")
    connection.left()  # a connection that was cut at the deadline looks like the end of the answer
    if not size:
        raise Reject("not fetched", f"{shortened(url)}: the answer is empty")
    if answer.length:
        raise Reject("not fetched", f"{shortened(url)}: it ended {answer.length:,} bytes too early")
    return b"".join(pieces)


def _quoted(target: str) -> str:
    """Escape a request target to ASCII without spaces or control characters; URLs in data sets
    often contain them unescaped.
    """
    return quote(target, safe="/?&=%:@+,;~!$'()*-._[]")
