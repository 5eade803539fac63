"""Downloads stay within their limits, and private addresses are out of reach unless they are
permitted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny import draw

from pargo_ds.data.sources import Reject, SampleTransform, Table, outcomes
from pargo_ds.data.sources.fetch import FetchLimits, fetch

IMAGE = draw("red", 4)
LIMITS = FetchLimits(max_bytes=100_000, seconds=1.5, redirects=2, allow_private=True, threads=4)


class Answers(BaseHTTPRequestHandler):
    """One path for each way an answer can be."""

    def do_GET(self) -> None:
        name, _, rest = self.path.partition("?")[0].strip("/").partition("/")
        getattr(self, f"answer_{name}", self.answer_none)(rest)

    def give(
        self, status: int = 200, body: bytes = IMAGE, length: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        for header, value in {"Content_Type": "image/png", **headers}.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def answer_none(self, rest: str) -> None:
        self.give(404)

    def answer_good(self, rest: str) -> None:
        self.give()

    def answer_page(self, rest: str) -> None:
        self.give(Content_Type="text/html")

    def answer_forbidden(self, rest: str) -> None:
        self.give(X_Robots_Tag="noai, nofollow")

    def answer_large(self, rest: str) -> None:
        self.give(body=b"x" * 200_000)

    def answer_endless(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x" * 10_000)

    def answer_cut(self, rest: str) -> None:
        self.give(length=len(IMAGE) + 10)

    def answer_slow(self, rest: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        for byte in IMAGE:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)

    def answer_silent(self, rest: str) -> None:
        time.sleep(4)
        self.give()

    def answer_hop(self, rest: str) -> None:
        count = int(rest)
        self.send_response(302)
        self.send_header("Location", f"/hop/{count - 1}" if count > 1 else "/good")
        self.end_headers()

    def answer_away(self, rest: str) -> None:
        self.send_response(301)
        self.send_header(
            "Location", {"file": "file:///etc/passwd", "metadata": "http://169.254.1.1/x"}[rest]
        )
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def test_images_come_whole_also_after_redirects(server: str) -> None:
    assert fetch(f"{server}/good", LIMITS) == IMAGE
    assert fetch(f" {server}/hop/2 ", LIMITS) == IMAGE
    assert fetch(f"{server}/good?a=b c&d=ä", LIMITS) == IMAGE


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none", "404"),
        ("page", "text/html; expected an image"),
        ("forbidden", "forbids it"),
        ("large", "200,000 bytes; at most 100,000"),
        ("endless", "more than 100,000 bytes"),
        ("cut", "too early"),
        ("hop/9", "more than 2 redirects"),
        ("away/file", "only http and https"),
    ],
)
def test_bad_answers_are_rejects(server: str, path: str, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        fetch(f"{server}/{path}", LIMITS)
    assert reason in caught.value.reason


@pytest.mark.parametrize("path", ["slow", "silent"])
def test_slow_servers_do_not_hold_up_the_build(server: str, path: str) -> None:
    """Who waited for them would get the image."""
    with pytest.raises(Reject):
        fetch(f"{server}/{path}", LIMITS)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/x", "http://localhost:9/x", "http://[::1]:9/x", "http://10.0.0.1/x", "http://169.254.169.254/x",
     "http://[::ffff:127.0.0.1]:9/x", "http://0.0.0.0:9/x", "http://2130706433:9/x", "http://192.168.1.1/x"],
)  # fmt: skip
def test_private_addresses_need_permission(url: str) -> None:
    with pytest.raises(Reject, match="private address"):
        fetch(url, FetchLimits(seconds=2))


def test_redirect_to_a_private_address_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address is permitted by hand; the check of the second is the real one."""
    from pargo_ds.data.sources import fetch as module

    real = module._address
    monkeypatch.setattr(
        module, "_address", lambda host, *rest: host if host == "127.0.0.1" else real(host, *rest)
    )
    with pytest.raises(Reject, match=r"private address 169\.254\.1\.1"):
        fetch(f"{server}/away/metadata", FetchLimits(seconds=2))


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_time_that_no_clock_takes_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds for a download; expected more than 0"):
        FetchLimits(seconds=seconds)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "", "x", "http://", "http://a:b:c/", 7, None,
                                 "http://no.such.host.invalid/x", "http://[broken/x", "http://x\0y/"])  # fmt: skip
def test_other_addresses_are_rejects(url: object) -> None:
    with pytest.raises(Reject):
        fetch(url, FetchLimits(seconds=2))


def test_table_of_urls_keeps_its_order(server: str, tmp_path: Path) -> None:
    paths = ["good", "none", "hop/1", "large"] * 10
    (tmp_path / "t.tsv").write_text(
        "".join(f"Caption {n}\t{server}/{path}\n" for n, path in enumerate(paths))
    )
    source = Table(files=(str(tmp_path / "t.tsv"),), columns=("text", "url"), image_column="url", images_are="url",
                   caption_column="text", download=LIMITS)  # fmt: skip
    found = [
        outcome
        for chunk in source.chunks()
        for outcome in outcomes(source, chunk.payload, SampleTransform())
    ]
    assert [outcome.where["row"] for outcome in found] == list(range(1, 41))
    assert [outcome.kind for outcome in found] == ["", "not fetched", "", "not fetched"] * 10
    assert [outcome.sample.captions["coarse"] for outcome in found[::2]] == [
        f"Caption {n}" for n in range(0, 40, 2)
    ]
