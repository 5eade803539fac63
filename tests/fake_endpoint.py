"""An OpenAI-compatible endpoint for tests: real HTTP on loopback, faults on purpose, a log of what
it answered.

What it has generated counts as answered and is billed, whether or not the client still listens: so
the log says how often each caption was paid.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CAPTION = {
    "global": "A square stands on a plain grey ground. It has one colour.",
    "parts": [{"where": "top left", "what": "A plain square of one colour."}],
}
PAID = ("ok", "refusal", "blocked", "badjson", "length", "cut", "late")
"""What a request may come to that the provider bills."""


@dataclass
class FakeEndpoint:
    """`faults` maps what may happen to its probability; else a caption is answered.

    429 and 500; refusal, blocked, badjson, length: paid answers without a caption; cut: half of an
    answer, paid; late: paid, but the connection is closed before; drop: closed, not paid; hang:
    nothing comes until `release`.
    """

    faults: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    delay_s: float = 0.0
    key: str | None = None
    refuses_format: bool = False
    usage: tuple[int, int] = (1000, 100)
    retry_after: str | None = "0"
    log: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> FakeEndpoint:
        self.rng, self.lock = random.Random(self.seed), threading.Lock()
        self.news = threading.Event()
        """Set with each request."""
        self.released = threading.Event()
        self.server = _Server(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def paid(self) -> Counter[str]:
        """How often each request was billed, by `fingerprint`."""
        with self.lock:
            return Counter(entry["request"] for entry in self.log if entry["what"] in PAID)

    def count(self, *what: str) -> int:
        with self.lock:
            return sum(entry["what"] in what for entry in self.log)

    def fate(self) -> str:
        draw = self.rng.random()
        for what, share in self.faults.items():
            draw -= share
            if draw < 0:
                return what
        return "ok"


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no news."""


def fingerprint(body: dict[str, Any]) -> str:
    """What a request asks for: its image and how long the answer may be."""
    content = body["messages"][-1]["content"]
    address = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    return hashlib.sha256(f"{address} {body['max_tokens']}".encode()).hexdigest()


def answer(what: str, usage: tuple[int, int], model: str, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": json.dumps(CAPTION)}
    finish = "stop"
    if what == "refusal":
        message = {"role": "assistant", "content": None, "refusal": "I cannot describe this."}
    elif what == "blocked":
        message, finish = {"role": "assistant", "content": ""}, "content_filter"
    elif what == "badjson":
        message["content"] = "Sure! {'global': A square"
    elif what == "length":
        message["content"], finish = message["content"][:30], "length"
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return {
        "id": f"answer-{number}",
        "object": "chat.completion",
        "model": f"{model}-2026",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": counts,
    }


def _handler(fake: FakeEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            given = self.headers.get("Authorization", "")
            if fake.key is not None and given != f"Bearer {fake.key}":
                return self._error(401, f"Incorrect API key provided: {given}")
            if fake.refuses_format and "response_format" in body:
                return self._error(400, "unknown field response_format")
            time.sleep(fake.delay_s)
            with fake.lock:
                what = fake.fate()
                number = len(fake.log)
                fake.log.append({"request": fingerprint(body), "what": what, "body": body})
                fake.news.set()
            return self._act(what, answer(what, fake.usage, body["model"], number))

        def _act(self, what: str, value: dict[str, Any]) -> None:
            if what.isdecimal():
                return self._error(int(what), "try again later")
            if what == "hang":
                fake.released.wait()
            if what in ("hang", "drop", "late"):
                self.close_connection = True
                return None
            data = json.dumps(value).encode()
            return self._send(200, data, data[: len(data) // 2] if what == "cut" else data)

        def _error(self, status: int, message: str) -> None:
            data = json.dumps({"error": {"message": message}}).encode()
            self._send(status, data, data)

        def _send(self, status: int, whole: bytes, sent: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(whole)))
                if status in (429, 500) and fake.retry_after is not None:
                    self.send_header("Retry-After", fake.retry_after)
                self.end_headers()
                self.wfile.write(sent)
            except OSError:
                pass  # the client was killed
            if len(sent) < len(whole):
                self.close_connection = True

    return Handler
