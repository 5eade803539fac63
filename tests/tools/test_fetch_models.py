"""tools/fetch_models.py leaves in the cache what a run without network loads, whatever the format of
the weights.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny import ROOT, run_command

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that huggingface_hub needs for a snapshot of a folder."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.split("?")[0]
        names = sorted(file.name for file in self.folder.iterdir())
        if path.startswith("/api/models/"):
            body = json.dumps(
                {"id": "own/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            ).encode()
        elif (name := path.rsplit("/", 1)[-1]) in names:
            body = (self.folder / name).read_bytes()
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{sha1(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder that a small hub serves as own/tiny, and its address."""
    folder = tmp_path / "repository"
    folder.mkdir()
    handler = type("Handler", (Hub,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("weights", "fetched"),
    [
        (["pytorch_model.bin"], "pytorch_model.bin"),
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["tf_model.h5"], None),
    ],
)
def test_weights_of_the_format_that_is_there_are_fetched(hub, tmp_path, weights, fetched):
    folder, address = hub
    (folder / "config.json").write_text("{}")
    for name in weights:
        (folder / name).write_bytes(name.encode())
    run_file = ROOT / "ds_configs/pretrain.yaml"
    command = [sys.executable, str(ROOT / "tools/fetch_models.py"), str(run_file)]
    command += ["--set", "llm.name=own/tiny", "--set", "vision.weights=random"]
    environment = {
        "HF_ENDPOINT": address,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = run_command(command, **environment)
    if fetched is None:
        assert done.returncode == 2, done.stderr
        assert "own/tiny at revision main has no weights in a format that is read" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert f"llm own/tiny: revision {COMMIT}" in done.stdout
    snapshot = tmp_path / "cache/models--own--tiny/snapshots" / COMMIT
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", fetched]
    assert (snapshot / fetched).read_bytes() == fetched.encode()
