"""The endpoint over real HTTP: answers, limits, refusals, clients that go away."""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from chat_requests import asked, data_url
from tiny import COLOURS, draw

pytest.importorskip("aiohttp")

LIMIT_S = 60


def post(endpoint, body, **options) -> httpx.Response:
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    url = f"{endpoint.url}/chat/completions"
    return httpx.post(url, **content, timeout=LIMIT_S, trust_env=False, **options)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def events(response: httpx.Response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_fifty_at_once_are_answered_as_one_by_one(serving):
    bodies = [
        asked(f"What? {'Where? ' * (n % 4)}", data_url(COLOURS[n % 6], n % 9) if n % 5 else None)
        for n in range(50)
    ]
    with serving() as endpoint:
        with ThreadPoolExecutor(50) as pool:
            together = [text_of(found) for found in pool.map(lambda b: post(endpoint, b), bodies)]
        alone = [text_of(post(endpoint, body)) for body in bodies[:10]]
        assert together[:10] == alone
        assert len(set(together)) > 5
        assert endpoint.service.places == 0


def test_a_stream_says_what_the_whole_answer_says(serving):
    with serving() as endpoint:
        for settings in ({}, {"temperature": 1.0, "seed": 3}, {"max_tokens": 1}):
            body = asked(image=data_url(), **settings)
            whole = post(endpoint, body).json()
            options = {"stream": True, "stream_options": {"include_usage": True}}
            response = post(endpoint, body | options)
            assert response.headers["content-type"].startswith("text/event-stream")
            *pieces, usage = events(response)
            deltas = [piece["choices"][0]["delta"].get("content", "") for piece in pieces]
            choice = whole["choices"][0]
            assert "".join(deltas) == choice["message"]["content"]
            assert pieces[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
            assert usage["usage"] == whole["usage"]


def test_usage_counts_the_prompts_tokens_and_those_that_were_generated(serving, tiny_pargo):
    _, processor = tiny_pargo
    turns = [{"role": "user", "content": "<image>\nWhat colour is it?"}]
    ids, _ = processor.encode_conversation(turns, add_generation_prompt=True)
    with serving() as endpoint:
        usage = post(endpoint, asked(image=data_url(), max_tokens=3)).json()["usage"]
    assert usage["prompt_tokens"] == len(ids)
    assert usage["completion_tokens"] <= 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_malformed_requests_are_refused_in_openais_form_and_harm_nothing(serving):
    with serving() as endpoint:
        wanted = text_of(post(endpoint, asked()))
        bodies = [
            b"", b"{", b"null", b"\x00" * 100, {}, asked(n=3), asked(text="<image>"),
            asked(image="file:///etc/passwd"), asked(image="/etc/passwd"),
            asked(image="data:image/png;base64,AAAA"), asked(image="http://other.example/a.png"),
            asked(max_tokens=10**9), asked(model="gpt-4o"),
            asked(response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
        ]  # fmt: skip
        for body in bodies:
            response = post(endpoint, body)
            assert response.status_code in (400, 404), body
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert "/etc/passwd" not in response.text
        assert text_of(post(endpoint, asked())) == wanted
        assert endpoint.service.places == 0


def test_other_addresses_and_methods_are_refused_in_the_same_form(serving):
    with serving() as endpoint:
        base = endpoint.url.removesuffix("/v1")
        for method, path, status in [
            ("GET", "/", 404),
            ("GET", "/v1/files", 404),
            ("GET", "/../etc/passwd", 404),
            ("GET", "/v1/chat/completions", 405),
            ("POST", "/v1/models", 405),
            ("GET", "/v1/models/other", 404),
        ]:
            response = httpx.request(method, base + path, trust_env=False)
            assert response.status_code == status, path
            assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_model_is_listed_and_the_server_is_in_health(serving):
    with serving() as endpoint:
        listed = httpx.get(f"{endpoint.url}/models", trust_env=False).json()
        assert [model["id"] for model in listed["data"]] == ["tiny"]
        one = httpx.get(f"{endpoint.url}/models/tiny", trust_env=False).json()
        assert one == listed["data"][0]
        health = httpx.get(endpoint.url.replace("/v1", "/health"), trust_env=False).json()
        assert health == {"status": "ok", "waiting": 0, "running": 0}


def test_without_the_key_nothing_is_answered_but_health(serving, caplog):
    key = "sk-very-secret"
    with serving(key=key) as endpoint, caplog.at_level("DEBUG"):
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": b"Bearer \xff\xe9"}):
            response = post(endpoint, asked(), headers=given)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        text_of(post(endpoint, asked(), headers={"Authorization": f"Bearer {key}"}))
        health = httpx.get(endpoint.url.replace("/v1", "/health"), trust_env=False)
        assert health.status_code == 200
    assert key not in caplog.text


def test_too_large_a_body_is_refused(serving):
    with serving(body_bytes=10_000) as endpoint:
        assert post(endpoint, asked(text="x" * 20_000)).status_code == 413
        text_of(post(endpoint, asked()))


@contextmanager
def held_model(engine, monkeypatch):
    """The model waits until the event is set."""
    release, generate = threading.Event(), engine.model.generate

    def waiting(**kwargs):
        release.wait()
        return generate(**kwargs)

    monkeypatch.setattr(engine.model, "generate", waiting)
    try:
        yield release
    finally:
        release.set()


def served(endpoint, count: int) -> None:
    """Wait until so many requests have a place."""
    while endpoint.service.places != count:
        httpx.get(endpoint.url.replace("/v1", "/health"), trust_env=False)


def test_one_request_more_than_there_are_places_is_told_to_come_again(serving, engine, monkeypatch):
    with serving(requests=3) as endpoint, held_model(engine, monkeypatch) as release:
        with ThreadPoolExecutor(3) as pool:
            first = [pool.submit(post, endpoint, asked()) for _ in range(3)]
            served(endpoint, 3)
            refused = post(endpoint, asked())
            release.set()
            for answer in first:
                text_of(answer.result())
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        text_of(post(endpoint, asked()))


def test_a_request_that_takes_too_long_is_told_so_and_its_row_is_freed(
    serving, engine, monkeypatch
):
    with serving(timeout_s=0.2) as endpoint, held_model(engine, monkeypatch) as release:
        for stream in (False, True):
            response = post(endpoint, asked(stream=stream))
            assert response.status_code == 504
            assert response.json()["error"]["code"] == "timeout"
        assert [row.gone for row in endpoint.added] == [True, True]
        release.set()


def test_a_client_that_goes_away_frees_its_place_and_its_row(serving, engine, monkeypatch):
    """Two clients go: one whose batch runs, one that waits behind it; a third is answered."""
    with serving(rows=1) as endpoint, held_model(engine, monkeypatch) as release:
        address = endpoint.service, endpoint.url.split("/")[2].split(":")
        clients = []
        for _ in range(2):
            body = json.dumps(asked(stream=True, max_tokens=1000)).encode()
            client = socket.create_connection((address[1][0], int(address[1][1])))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            clients.append(client)
        served(endpoint, 2)
        while len(endpoint.added) < 2:
            served(endpoint, 2)
        for client in clients:
            client.close()
        served(endpoint, 0)
        release.set()
        text_of(post(endpoint, asked()))
        assert [row.gone for row in endpoint.added[:2]] == [True, True]
        assert [row.told for row in endpoint.added[:2]] == [False, False]


def test_a_client_that_does_not_read_loses_its_place(serving, monkeypatch):
    from aiohttp import web

    async def never(self, data):
        await asyncio.Event().wait()

    with serving(timeout_s=0.2) as endpoint:
        with monkeypatch.context() as patched:
            patched.setattr(web.StreamResponse, "write", never)
            with pytest.raises(httpx.HTTPError):
                post(endpoint, asked(stream=True))
        served(endpoint, 0)
        assert endpoint.added[0].gone


class Files(http.server.SimpleHTTPRequestHandler):
    """A folder, and an address that leads to another one."""

    def do_GET(self):
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.end_headers()
            return None
        return super().do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def files(folder):
    (folder / "image.png").write_bytes(draw("red", 0))
    (folder / "large.png").write_bytes(b"\x89PNG" + b"0" * 50_000)
    handler = functools.partial(Files, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_an_image_on_the_same_host_is_read_and_nothing_else_behind_addresses(serving, tmp_path):
    with serving(body_bytes=20_000) as endpoint, files(tmp_path) as there:
        wanted = text_of(post(endpoint, asked(image=data_url())))
        assert text_of(post(endpoint, asked(image=f"{there}/image.png"))) == wanted
        port = there.rsplit(":", 1)[1]
        for address, status, said in [
            (f"{there}/moved", 400, "status 302"),
            (f"{there}/absent.png", 400, "status 404"),
            (f"{there}/large.png", 413, "20,000 bytes"),
            (f"{there}/", 400, "known format"),
            (f"http://localhost:{port}/image.png", 400, "another host"),
            ("http://127.0.0.1:1/image.png", 400, "cannot be read"),
        ]:
            response = post(endpoint, asked(image=address))
            assert (response.status_code, said in response.text) == (status, True), response.text


def test_behind_a_proxy_and_by_choice_only_data_urls_are_read(serving, tmp_path):
    with files(tmp_path) as there:
        with serving() as endpoint:
            body = asked(image=f"{there}/image.png")
            response = post(endpoint, body, headers={"X-Forwarded-For": "1.2.3.4"})
            assert response.status_code == 400
        with serving(addresses=False) as endpoint:
            assert post(endpoint, body).status_code == 400
