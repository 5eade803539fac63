"""Checkpoints are whole or absent, and say what they hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading

import pytest

from pargo_ds.checkpoint import engine_state
from pargo_ds.checkpoint.manifest import read_manifest, step_folder, verify_files
from pargo_ds.checkpoint.saver import RunMetadata, Saver, write_own


def test_a_checkpoint_holds_no_frozen_weight_and_names_what_it_holds(finished_checkpoints):
    folder = step_folder(finished_checkpoints, 3)
    manifest = read_manifest(folder)
    assert not any(name.startswith("vision.") for name in manifest.parameters)
    assert all(name.startswith("vision.") for name in manifest.frozen)
    assert manifest.optimizer_step >= 3
    assert manifest.totals["samples"] > 0
    named = {f"fragments/rank_{rank:05d}.safetensors" for rank in (0, 1)}
    named |= {f"random/rank_{rank:05d}.safetensors" for rank in (0, 1)}
    assert set(manifest.files) == named
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {*named, "manifest.json"}


def test_a_checkpoint_keeps_the_totals_of_its_step_while_training_goes_on(tmp_path, monkeypatch):
    """The trainer adds to its totals before the background has written them."""
    parts = {"snapshot": [], "trained_shapes": {}, "optimizer_step": 1}
    for name, value in parts.items():
        monkeypatch.setattr(engine_state, name, lambda engine, value=value: value)
    go_on = threading.Event()

    def write_late(*arguments):
        go_on.wait(30)
        return write_own(*arguments)

    monkeypatch.setattr("pargo_ds.checkpoint.saver.write_own", write_late)
    facts = RunMetadata(
        model_fingerprint="", zero_stage=3, config={}, model_config={}, frozen_sources={}, frozen={}
    )
    saver, totals = Saver(tmp_path, facts, keep=1), {"samples": 1.0}
    saver.save(None, step=1, data_state={}, totals=totals)
    totals["samples"] = 2.0
    go_on.set()
    saver.wait()
    assert read_manifest(step_folder(tmp_path, 1)).totals == {"samples": 1.0}


SMALL_DISK_MB = 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few MB, mounted for the test."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MB}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_clear_error_and_leaves_the_checkpoint_before(
    launch, small_disk, tmp_path
):
    changes = {"train": {"steps": 12}, "checkpoint": {"every": 2, "keep": 10}}
    (small_disk / "tiny").mkdir()
    process, run_dir = launch(2, changes, output=small_disk)
    assert process.returncode != 0
    assert "could not be written" in process.stderr, process.stderr[-3000:]
    assert "the checkpoint before it stays" in process.stderr
    folder = newest_of(run_dir)
    verify_files(folder, read_manifest(folder))
    for old in sorted((run_dir / "checkpoints").glob("step_*"))[:-1]:
        shutil.rmtree(old)  # what the user does: make room
    changes["checkpoint"]["keep"] = 1
    process, _ = launch(2, changes, output=small_disk)
    assert process.returncode == 0, process.stderr[-3000:]
    assert f"continuing after step {int(folder.name[5:])}" in process.stderr


def newest_of(run_dir):
    return run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()
