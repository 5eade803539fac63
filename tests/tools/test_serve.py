"""tools/serve.py as a process: it serves an export, and a signal ends it cleanly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from chat_requests import asked, data_url
from tiny import ROOT, run_command

from pargo_ds.files.sha256sums import write_hashes

pytest.importorskip("aiohttp")

TOOL = [sys.executable, str(ROOT / "tools/serve.py")]


@pytest.fixture(scope="module")
def export(tiny_pargo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    for part in tiny_pargo:
        part.save_pretrained(folder)
    write_hashes(folder)
    return folder


@contextmanager
def served(export, *arguments: str, **environment: str):
    """(process, address) of a server that answers."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(
        [*TOOL, str(export), "--port", "0", "--device", "cpu", "--name", "tiny", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
    )  # fmt: skip
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"serving 'tiny' at (\S+)/v1", line):
                break
        else:
            pytest.fail("".join(lines))
        address = found[1]
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport, timeout=60, trust_env=False) as client:
            while client.get(f"{address}/health").status_code != 200:
                pass
            yield process, address, client
    finally:
        process.kill()
        process.wait()


def test_sigterm_ends_it_after_the_answers_that_are_being_written(export):
    key = "sk-very-secret"
    with served(export, PARGO_API_KEY=key) as (process, address, client):
        headers = {"Authorization": f"Bearer {key}"}
        body = asked(image=data_url(), stream=True, max_tokens=100, temperature=1.0, seed=1)
        url = f"{address}/v1/chat/completions"
        with client.stream("POST", url, json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        said = process.stdout.read()
        assert process.wait(60) == 0, said
        assert key not in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nowhere"], "nowhere is not an exported model"),
        (["nowhere", "--port", "99999"], "port 99999 cannot be had"),
        (["nowhere", "--batch", "0"], "--batch must be at least 1"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(arguments, said):
    process = run_command([*TOOL, *arguments])
    assert process.returncode == 2
    assert said in process.stderr
    assert "Traceback" not in process.stderr


def test_an_empty_key_is_refused_as_it_would_open_the_endpoint_to_all():
    process = run_command([*TOOL, "nowhere"], PARGO_API_KEY="")
    assert process.returncode == 2
    assert "PARGO_API_KEY is empty" in process.stderr
