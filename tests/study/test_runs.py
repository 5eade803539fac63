"""Real trainings of tiny parts: what comes out is what was trained, and kills change nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from tiny import ROOT, merged, run_command
from tiny_study import command, write_study

from pargo_ds.config import parse_config
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.files.sha256sums import check_hashes
from pargo_ds.learning.trial import lines, prepare
from pargo_ds.study.cells import Stage, cells_of
from pargo_ds.study.one_process import write_export
from pargo_ds.study.run_cell import ASKED
from pargo_ds.study.study_file import load_study


def test_the_export_of_one_process_is_the_model_that_was_trained(tiny_run, tmp_path):
    lora = {"mode": "lora", "lr": 1e-2, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}
    run = merged(tiny_run, {"output": str(tmp_path), "train": {"steps": 3}})
    run["train"]["llm"] = lora
    trial = prepare(parse_config(run))
    for _ in lines(trial, every=3):
        pass
    batch = trial.validation[0].model_inputs("cpu") | {"labels": None}
    adapters = [p for name, p in trial.model.llm.named_parameters() if "lora_B" in name]
    assert all(adapter.abs().max() > 1e-3 for adapter in adapters)  # they have learned something
    trial.model.eval()
    with torch.no_grad():
        trained = trial.model(**batch).logits
        write_export(trial, tmp_path / "export")
        model, processor = load_exported(tmp_path / "export")
        off = float((model(**batch).logits - trained).abs().max() / trained.abs().max())
    print(f"logits of the export: off by {off:.1e}")
    assert off < 1e-5  # LoRA is added to the weight instead of to its output; measured: 2.3e-7
    assert not (tmp_path / "export/adapter").exists()
    assert check_hashes(tmp_path / "export")
    assert model.generation_config.eos_token_id == processor.stop_token_ids


def kill_tree(process: subprocess.Popen, everything: bool) -> None:
    """kill -9 of the runner, and of all that it started, or of the runner alone."""
    children = psutil.Process(process.pid).children(recursive=True) if everything else []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for child in children:
        with_no_mercy(child)


def with_no_mercy(child: psutil.Process) -> None:
    try:
        child.kill()
    except psutil.NoSuchProcess:
        return


def wait_for(path, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the study ended"
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def numbers(cell) -> dict:
    """What a result says of learning and answers, without times."""
    result = json.loads(cell.result.read_text())
    for curve in result["curves"].values():
        for line in curve:
            line.pop("seconds")
    return {key: result[key] for key in ("answers", "curves", "settings", "images", "scores")}


@pytest.fixture
def start_study() -> Callable[[Path], subprocess.Popen]:
    """Function that starts the tool in a session of its own."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }

    def start(study_file: Path) -> subprocess.Popen:
        return subprocess.Popen(
            command(study_file), cwd=ROOT, env=env, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    return start


def whole_cell(tiny_run: dict, folder: Path) -> dict:
    """The numbers of the first cell of the same study, uninterrupted."""
    whole = write_study(folder, tiny_run)
    whole.write_text(whole.read_text().replace(str(folder / "out"), str(folder / "again")))
    done = run_command(command(whole, "--cell", "0"), timeout=900)
    assert done.returncode == 0, done.stderr
    return numbers(cells_of(load_study(whole), "quick")[0])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_study_killed_at_five_random_moments_ends_with_the_same_numbers(
    start_study, tiny_run, tmp_path
):
    """One in each part of a cell, up to a second after a drawn step or file; every other kill leaves
    the cell's own process alive.
    """
    study_file = write_study(tmp_path, tiny_run)
    cells = cells_of(load_study(study_file), "quick")
    rng = random.Random(3)
    first, second = cells[0].stages

    def trained(stage: Stage, steps: int) -> Callable[[], bool]:
        return lambda: lines_of(stage.run.run_dir / "metrics.jsonl.part") >= steps

    moments = [
        trained(first, rng.randint(1, 6)),
        first.export.exists,
        trained(second, rng.randint(1, 6)),
        second.export.exists,
        (cells[0].folder / ASKED).exists,
    ]
    for number, reached in enumerate(moments):
        process = start_study(study_file)
        while not reached() and not cells[0].result.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        print(f"kill {number}: {sorted(path.name for path in cells[0].folder.glob('*'))}")
        kill_tree(process, everything=number % 2 == 0)
    done = run_command(command(study_file), timeout=1500)
    assert done.returncode == 0, done.stderr
    assert numbers(cells[0]) == whole_cell(tiny_run, tmp_path)


def lines_of(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_study_killed_twice_ends_with_the_numbers_of_an_uninterrupted_one(
    start_study, tiny_run, tmp_path
):
    study_file = write_study(tmp_path, tiny_run)
    cells = cells_of(load_study(study_file), "quick")
    # Ended with everything that it started, in the second stage.
    process = start_study(study_file)
    wait_for(cells[0].stages[1].run.run_dir / "config.yaml", process)
    first_export = cells[0].stages[0].export.stat().st_mtime_ns
    kill_tree(process, everything=True)
    assert not cells[0].result.exists()
    # Its runner alone is ended: the cell goes on, and is waited for.
    process = start_study(study_file)
    wait_for(cells[0].stages[1].run.run_dir / "metrics.jsonl", process)
    assert cells[0].stages[0].export.stat().st_mtime_ns == first_export  # not trained again
    kill_tree(process, everything=False)
    done = run_command(command(study_file), timeout=1500)
    assert done.returncode == 0, done.stderr
    assert all(cell.result.is_file() for cell in cells)
    assert not cells[0].stages[0].export.exists()  # weights are not kept
    assert (tmp_path / "out/quick/report.html").is_file()
    killed = numbers(cells[0])
    listed = run_command(command(study_file, "--list"))
    assert not listed.stdout.strip()  # nothing is left to do
    assert whole_cell(tiny_run, tmp_path) == killed
