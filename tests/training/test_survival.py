"""Stop requests, failures, bad numbers, the watchdog and the lock of a run's folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from tiny import ROOT, merged, metrics, read_state, run_command

from pargo_ds.batch import Encoded, pack
from pargo_ds.errors import RunBusyError
from pargo_ds.training.bad_steps import BadSteps
from pargo_ds.training.survival import StopRequest, first_to_fail, write_state


def launch_in_background(
    tiny_run, folder: Path, changes: dict, ranks: int = 1
) -> tuple[subprocess.Popen, Path]:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(merged(tiny_run, {"output": str(folder), **changes})))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(ranks),
        "--standalone",
    ]
    process = subprocess.Popen(
        [*command, "-m", "pargo_ds.train", str(path)], env={**env, "CUDA_VISIBLE_DEVICES": ""}, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return process, folder / "tiny"


def wait_until(condition, process: subprocess.Popen, timeout: float = 150) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def lines(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


LONG = {"train": {"steps": 5000}, "checkpoint": {"every": 1000}}


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The ranks of a run, without what they have forked: until it calls exec, or for ever as a reader
    of data, a forked process has its parent's command line.
    """
    children = psutil.Process(process.pid).children(recursive=True)
    ours = [child for child in children if "pargo_ds.train" in " ".join(child.cmdline())]
    found = {child.pid for child in ours}
    return [child for child in ours if child.ppid() not in found]


@pytest.mark.parametrize("way", ["signal", "file"])
def test_a_stop_request_ends_the_run_saved_and_with_status_0(tiny_run, tmp_path, way):
    process, run_dir = launch_in_background(tiny_run, tmp_path, LONG)
    wait_until(lambda: lines(run_dir) >= 2, process)
    if way == "file":
        (run_dir / "STOP").touch()
    else:
        (rank,) = ranks_of(process)
        rank.send_signal(signal.SIGUSR1)
        rank.send_signal(signal.SIGUSR1)  # a second one must not break the save
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-4000:]
    state = read_state(run_dir)
    assert state["state"] == "interrupted"
    assert state["reason"] == ("the file STOP" if way == "file" else "SIGUSR1")
    assert state["step"] == lines(run_dir)
    latest = (run_dir / "checkpoints" / "latest").read_text().strip()
    assert latest == f"step_{state['step']:08d}"
    assert not (run_dir / "STOP").exists()
    assert not (run_dir / "DONE").exists()
    assert "the same command continues" in output


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_and_one_traceback_is_shown(tiny_run, tmp_path):
    process, run_dir = launch_in_background(tiny_run, tmp_path, LONG, ranks=2)
    wait_until(lambda: lines(run_dir) >= 2, process)
    victim = next(rank for rank in ranks_of(process) if rank.environ().get("RANK") == "1")
    started = time.monotonic()
    victim.kill()
    output, _ = process.communicate(timeout=120)
    print(f"ended {time.monotonic() - started:.1f} s after the kill")
    assert process.returncode != 0
    assert output.count("in train_on") <= 1


@pytest.mark.slow
def test_a_run_that_hangs_writes_the_stacks_of_every_rank_and_ends(tiny_run, tmp_path):
    changes = {"survival": {"watchdog_minutes": 0.1}, "train": {"steps": 5000}}
    process, run_dir = launch_in_background(tiny_run, tmp_path, changes, ranks=2)
    wait_until(lambda: lines(run_dir) >= 2, process)
    victim = next(rank for rank in ranks_of(process) if rank.environ().get("RANK") == "1")
    victim.suspend()
    time.sleep(15)
    assert (
        run_dir / "logs" / "stacks_rank_00000.txt"
    ).stat().st_size > 0  # rank 0 waited in a collective
    victim.resume()
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert "trainer.py" in (run_dir / "logs" / "stacks_rank_00000.txt").read_text()


def test_a_run_cannot_be_started_twice_at_once(tiny_run, tmp_path, monkeypatch):
    from pargo_ds.config import parse_config
    from pargo_ds.training import run_folder

    run = parse_config(merged(tiny_run, {"output": str(tmp_path)}))
    run.run_dir.mkdir(parents=True)
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT_S", 0.3)
    lock = run_folder.lock_run_folder(run)
    with pytest.raises(
        RunBusyError, match=f"is being trained by another process .*process {os.getpid()}"
    ):
        run_folder.lock_run_folder(run)
    lock.close()
    run_folder.lock_run_folder(run).close()


def batch(names: list[str]):
    pixels = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    return pack(
        [Encoded(sample_id=n, input_ids=[1, 2], labels=[1, 2], pixels=pixels) for n in names], 8
    )


def test_bad_steps_in_a_row_end_the_run_and_name_their_samples():
    bad = BadSteps(3)
    nan = {"loss": float("nan")}
    assert bad.check_step(1, nan, True, [batch(["a", "b"])])
    assert not bad.check_step(
        2, {"loss": 1.0}, False, [batch(["c"])]
    )  # a good step between: counting begins anew
    assert bad.check_step(3, nan, True, [batch(["d"])])
    assert bad.check_step(
        4, {"loss": 1.0}, True, [batch(["e"])]
    )  # the loss is fine, the gradient was not
    with pytest.raises(FloatingPointError, match="step 3: d; step 4: e; step 5: f") as caught:
        bad.check_step(5, nan, True, [batch(["f"])])
    assert "3 step(s) in a row" in str(caught.value)


@pytest.mark.parametrize("zero", ["zero3", pytest.param("zero2", marks=pytest.mark.slow)])
def test_a_gradient_that_is_no_number_is_skipped_and_training_goes_on(tiny_run, tmp_path, zero):
    """A gradient of NaN in steps 2 and 3 of a real run: both are skipped, and step 4 trains on
    finite weights.
    """
    script = tmp_path / "poisoned.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys

            from pargo_ds import train
            from pargo_ds.training.trainer import Trainer

            plain, steps = Trainer.optimizer_step, []

            def poisoned(self, *arguments):
                if not steps:
                    backward = self.engine.backward
                    self.engine.backward = lambda loss: backward(loss * float("nan") if len(steps) in (2, 3) else loss)
                steps.append(None)
                return plain(self, *arguments)

            Trainer.optimizer_step = poisoned
            sys.exit(train.main(sys.argv[1:]))
            """
        )
    )
    run_file = tmp_path / "run.yaml"
    changes = {
        "output": str(tmp_path),
        "deepspeed": f"ds_configs/{zero}.json",
        "train": {"steps": 5},
    }
    run_file.write_text(yaml.safe_dump(merged(tiny_run, changes)))
    process = run_command([sys.executable, str(script), str(run_file)])
    assert process.returncode == 0, process.stderr[-4000:]
    steps = metrics(tmp_path / "tiny")
    assert [line["total_skipped_steps"] for line in steps] == [0, 1, 2, 2, 2]
    assert all(line["loss"] is not None for line in steps)
    assert [line["grad_norm"] is None for line in steps] == [False, True, True, False, False]


def test_a_stop_file_counts_when_it_is_younger_than_the_submission_or_the_process(
    tmp_path, monkeypatch
):
    stop = StopRequest.__new__(StopRequest)  # without its signal handlers
    stop.file, stop.reason = tmp_path / "STOP", None
    for submitted, touched, stays in (
        (None, 0, False),
        (None, None, True),
        ("1000", 999, False),
        ("1000", 1000, True),
    ):
        monkeypatch.delenv("PARGO_SUBMITTED", raising=False)
        if submitted is not None:
            monkeypatch.setenv("PARGO_SUBMITTED", submitted)
        stop.file.touch()
        if touched is not None:
            os.utime(stop.file, (touched, touched))
        stop.forget_old_file()
        assert stop.file.exists() == stays
    stop.file.unlink()
    stop.forget_old_file()


@pytest.mark.parametrize("reason, stays", [("SIGTERM", True), ("the file STOP", False)])
def test_a_stop_file_that_comes_while_a_signal_is_obeyed_stays_for_the_next_start(
    tiny_run, tmp_path, reason, stays
):
    from pargo_ds.config import parse_config
    from pargo_ds.train import finish

    run = parse_config(merged(tiny_run, {"output": str(tmp_path)}))
    run.run_dir.mkdir(parents=True)
    stop = StopRequest.__new__(StopRequest)
    stop.file, stop.reason = run.run_dir / "STOP", reason
    stop.file.touch()
    finish(run, stop, 3, 10)
    assert stop.file.exists() == stays
    assert read_state(run.run_dir)["reason"] == reason


def test_only_the_first_rank_to_fail_shows_its_traceback(tmp_path):
    assert first_to_fail(tmp_path, RuntimeError("the one that matters"))
    assert not first_to_fail(tmp_path, ValueError("a broken connection"))
    assert "the one that matters" in (tmp_path / "failure.txt").read_text()


def test_state_is_read_back_and_a_signal_only_leaves_a_note(tmp_path):
    write_state(tmp_path, "interrupted", step=7, reason="SIGTERM")
    assert read_state(tmp_path)["step"] == 7
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        stop = StopRequest(tmp_path, "USR2")
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
        assert stop.reason == "SIGUSR2"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert json.loads((tmp_path / "state.json").read_text())["restart"] is True
