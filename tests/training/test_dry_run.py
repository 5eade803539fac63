"""--dry-run of every shipped run file: no GPU, no weights, no network."""

import sys
from pathlib import Path

import pytest
from tiny import ROOT, run_command

RUN_FILES = sorted((ROOT / "ds_configs").glob("*.yaml"))


@pytest.mark.parametrize("run_file", RUN_FILES, ids=lambda path: path.stem)
def test_shipped_run_file_passes_dry_run(run_file, tmp_path):
    command = [sys.executable, "-m", "pargo_ds.train", str(run_file), "--dry-run", "--ranks", "2"]
    # an empty hub cache and offline mode stand for a machine without the weights
    process = run_command(command, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert "dry run: no fault found" in process.stdout
    assert "projector  full" in process.stdout


def test_full_size_numbers_are_the_papers(tmp_path):
    command = [sys.executable, "-m", "pargo_ds.train", "ds_configs/pretrain.yaml", "--dry-run", "--ranks", "8"]
    text = run_command(command, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)).stdout
    assert "304 visual tokens per picture (288 partial + 16 global)" in text
    assert "24 packs per step = 8 ranks x 3 micro-batches" in text
    assert "6,738,415,616" in text  # Llama-7B


def test_dry_run_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "pargo_ds.train", str(ROOT / "ds_configs/demo_pretrain.yaml"), "--dry-run"]
    process = run_command([*command, "--set", f"output={tmp_path / 'runs'}", "--ranks", "1"])
    assert process.returncode == 0, process.stderr
    assert not Path(tmp_path / "runs").exists()


def test_wrong_run_file_has_status_2_and_says_why(tmp_path):
    command = [sys.executable, "-m", "pargo_ds.train", "ds_configs/pretrain.yaml", "--dry-run"]
    process = run_command([*command, "--set", "projector.partial_tokns=3"])
    assert process.returncode == 2
    assert "did you mean partial_tokens?" in process.stderr
    process = run_command([*command, "--set", "projector.partial_tokens=600"])
    assert process.returncode == 2
    assert "600 partial tokens" in process.stderr
