"""kill -9 of every process of a run at random moments, saves included: nothing lost, nothing
repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from tiny import ON_CPU, ROOT, merged, metrics, warm_python

STEPS = 400
START_TIMEOUT_S = 180


def run_file(tiny_run, folder: Path, name: str) -> Path:
    changes = {
        "name": name,
        "output": str(folder),
        "train": {"steps": STEPS, "llm": {"mode": "full", "lr": 1e-4}},
        "checkpoint": {"every": 1, "keep": 2},  # a save is on its way at nearly every moment
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merged(tiny_run, changes)))
    return path


def start(path: Path, ranks: int, *arguments: str) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--standalone"]
    log = open(path.with_suffix(".log"), "a")  # noqa: SIM115 (the process keeps it)
    return subprocess.Popen(
        [str(warm_python().path), *launcher, "-m", "pargo_ds.train", str(path), *arguments],
        env={**os.environ, **ON_CPU},
        cwd=ROOT,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def kill_all(process: subprocess.Popen, path: Path) -> None:
    """Launcher and ranks have the run file in their command lines; what runs for them ends with them
    (tests/test_warm_python.py).
    """
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if str(path) in other.cmdline():
                other.kill()
    process.wait()


def steps_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def metrics_file(run_dir: Path) -> int:
    """Which file it is: a run that continues writes a new one, without the lines of steps it will
    do again.
    """
    path = run_dir / "metrics.jsonl"
    return path.stat().st_ino if path.is_file() else 0


def wait_for_progress(process: subprocess.Popen, run_dir: Path, log: Path, old_file: int) -> None:
    """Until the run has done a step beyond the checkpoint that it started from."""
    latest = run_dir / "checkpoints" / "latest"
    resumed = int(latest.read_text().strip()[5:]) if latest.is_file() else 0
    deadline = time.monotonic() + START_TIMEOUT_S
    while metrics_file(run_dir) == old_file or steps_done(run_dir) <= resumed:
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.02)


def kill_and_compare(tiny_run, folder: Path, ranks: int, kills: int, seed: int) -> None:
    drawn = random.Random(seed)
    path = run_file(tiny_run, folder, "killed")
    run_dir, log = folder / "killed", path.with_suffix(".log")
    for number in range(kills):
        old_file = metrics_file(run_dir)
        process = start(path, ranks)
        if number % 10 == 9:  # now and then while it starts
            time.sleep(drawn.uniform(0, 12))
        else:
            wait_for_progress(process, run_dir, log, old_file)
            time.sleep(drawn.uniform(0, 0.6))
        kill_all(process, path)
        print(f"kill {number + 1}: after step {steps_done(run_dir)}", flush=True)
    process = start(path, ranks, "--stop-after", str(steps_done(run_dir) + 2))
    assert process.wait(timeout=START_TIMEOUT_S) == 0, log.read_text()[-4000:]
    last = json.loads((run_dir / "state.json").read_text())["step"]
    whole = start(run_file(tiny_run, folder, "whole"), ranks, "--stop-after", str(last))
    assert whole.wait(timeout=4 * START_TIMEOUT_S) == 0, (folder / "whole.log").read_text()[-4000:]
    survived, uninterrupted = metrics(run_dir), metrics(folder / "whole")
    assert [line["step"] for line in survived] == list(range(1, last + 1))
    for name in ("step", "loss", "grad_norm", "target_tokens", "total_samples", "total_tokens"):
        assert [line[name] for line in survived] == [line[name] for line in uninterrupted], name
    assert "damaged checkpoint" not in log.read_text()
    assert not list((run_dir / "checkpoints").glob("damaged_*"))


def test_two_kills_leave_the_run_as_if_it_had_never_stopped(tiny_run, tmp_path):
    kill_and_compare(tiny_run, tmp_path, ranks=1, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_leave_a_run_of_two_ranks_as_if_it_had_never_stopped(tiny_run, tmp_path):
    kill_and_compare(tiny_run, tmp_path, ranks=2, kills=10, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_fifty_kills_leave_a_run_of_two_ranks_as_if_it_had_never_stopped(tiny_run, tmp_path):
    kill_and_compare(tiny_run, tmp_path, ranks=2, kills=50, seed=1)
