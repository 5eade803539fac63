"""kill -9 of tools/caption.py at random moments, against an endpoint with faults: each caption is
paid once, but for requests in flight, and money.json names those.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from caption_runs import selected_run
from fake_endpoint import FakeEndpoint, fingerprint
from tiny import ROOT

from pargo_ds.captioning.ask.captions import jobs_of
from pargo_ds.captioning.ask.ledger import Ledger
from pargo_ds.captioning.ask.prompt import read_prompt
from pargo_ds.captioning.ask.request import Parameters, request_body
from pargo_ds.captioning.run_files import RunFolder, read_lines, read_object

FAULTS = {"429": 0.05, "500": 0.05, "refusal": 0.03, "badjson": 0.03, "cut": 0.02, "length": 0.02,
          "drop": 0.01, "hang": 0.005}  # fmt: skip
AT_ONCE = 6
PRICE, COST = "1,10", 0.002
"""Dollars for a million tokens; what an answer of the fake endpoint costs by it."""


def start(run: RunFolder, fake: FakeEndpoint, budget: float) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tools" / "caption.py"), "caption", str(run.path)]
    command += ["--endpoint", fake.url, "--model", "tiny", "--price", PRICE]
    command += ["--budget", str(budget), "--until-budget", "--at-once", str(AT_ONCE)]
    command += ["--pause", "0.01", "--tries", "20", "--timeout", "10"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def kill_after(process: subprocess.Popen, fake: FakeEndpoint, requests: int) -> bool:
    """Kill the captioner once the endpoint has seen so many requests; False when it ended before."""
    while len(fake.log) < requests:
        if process.poll() is not None:
            return False
        fake.news.wait(0.05)
        fake.news.clear()
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def without_an_answer(run: RunFolder) -> int:
    """Requests that broke, or waited longer than the time-out: those that hang, and on a busy machine
    any. The ledger has a line for each; a line that a kill tore apart is none.
    """
    lines = [
        line
        for path in run.ledger.glob("[0-9]*.jsonl")
        for line in path.read_text().splitlines(keepends=True)
    ]
    return sum(json.loads(line)["kind"] == "unknown" for line in lines if line.endswith("}\n"))


def kills(folder: Path, images: int, times: int, seed: int) -> None:
    print(f"random seed {seed}")
    rng = random.Random(seed)
    run = selected_run(folder, images)
    budget = 10.0  # has room for many requests without an answer, at $0.05 each
    with FakeEndpoint(faults=FAULTS, seed=seed, delay_s=0.002) as fake:
        killed = 0
        for _ in range(times):
            seen = len(fake.log)
            process = start(run, fake, budget)
            killed += kill_after(process, fake, seen + rng.randrange(1, max(2, images // times)))
            process.communicate()
        process = start(run, fake, budget)
        said, faults = process.communicate()
        assert process.returncode == 0, said + faults
        paid = fake.paid()
    assert killed == times
    ids = {
        fingerprint(request_body(job, read_prompt(), parameters)): job.id
        for job in jobs_of(run)
        for parameters in (Parameters("tiny"), Parameters("tiny").longer())
    }
    money = read_object(run.money)
    listed = Counter({entry["id"]: entry["times"] for entry in money["maybe_paid"]})
    twice = {ids[request] for request, often in paid.items() if often > 1}
    assert twice <= set(listed)
    for request, often in paid.items():
        assert often <= 1 + listed[ids[request]]
    assert sum(listed.values()) <= killed * AT_ONCE + without_an_answer(run)
    assert {ids[request] for request in paid} == {job.id for job in jobs_of(run)}
    with Ledger(run.ledger) as ledger:
        assert sum(paid.values()) * COST <= ledger.spent + 1e-9 <= budget
    outcomes = Counter(row["outcome"] for row in read_lines(run.captions))
    assert sum(outcomes.values()) == images
    assert set(outcomes) <= {"ok", "refused", "unreadable", "length"}
    print(f"{len(fake.log)} requests, {sum(paid.values())} paid, {len(twice)} of them twice, "
          f"{sum(listed.values())} listed, {dict(outcomes)}")  # fmt: skip


@pytest.mark.timeout(900)
def test_two_kills_and_nothing_is_paid_twice_unlisted(tmp_path: Path) -> None:
    kills(tmp_path, images=60, times=2, seed=4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_random_kills_and_nothing_is_paid_twice_unlisted(tmp_path: Path) -> None:
    kills(tmp_path, images=300, times=20, seed=random.randrange(2**32))
