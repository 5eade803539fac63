"""Checkpoints are whole or absent, damage is found and named, and the one before it is taken."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import threading

import pytest

from pargo_ds.checkpoint import engine_state, store
from pargo_ds.checkpoint.manifest import point_latest, read_manifest, step_folder, verify_files
from pargo_ds.checkpoint.store import clean_up, find_resume
from pargo_ds.errors import CheckpointError


def newest(checkpoints):
    return step_folder(checkpoints, 3)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_holds_no_frozen_weight_and_names_what_it_holds(finished_checkpoints):
    manifest = read_manifest(newest(finished_checkpoints))
    assert not any(name.startswith("vision.") for name in manifest.parameters)
    assert all(name.startswith("vision.") for name in manifest.frozen)
    assert manifest.optimizer_step >= 3
    assert manifest.totals["samples"] > 0
    named = {f"fragments/rank_{rank:05d}.safetensors" for rank in (0, 1)}
    named |= {f"random/rank_{rank:05d}.safetensors" for rank in (0, 1)}
    assert set(manifest.files) == named
    assert {
        str(path.relative_to(newest(finished_checkpoints)))
        for path in files_of(newest(finished_checkpoints))
    } == {
        *named,
        "manifest.json",
    }


def test_the_newest_whole_checkpoint_is_found(checkpoints):
    folder, manifest = find_resume(checkpoints)
    assert folder == newest(checkpoints)
    assert manifest.step == 3


def truncate(folder):
    path = folder / "fragments/rank_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def lose_a_rank(folder):
    (folder / "fragments/rank_00001.safetensors").unlink()


def lose_the_manifest(folder):
    (folder / "manifest.json").unlink()


def leave_the_folder(folder):
    manifest = read_manifest(folder)
    dataclasses.replace(manifest, files={"../../outside": {"bytes": 0, "xxh3": ""}}).write(folder)


@pytest.mark.parametrize(
    "damage, said",
    [
        (truncate, "fragments/rank_00001.safetensors has"),
        (lose_a_rank, "fragments/rank_00001.safetensors is missing"),
        (lose_the_manifest, "manifest.json is missing"),
        (leave_the_folder, "leaves the checkpoint's folder"),
    ],
)
def test_damage_is_named(checkpoints, damage, said, caplog):
    damage(newest(checkpoints))
    with pytest.raises(CheckpointError) as caught:
        verify_files(newest(checkpoints), read_manifest(newest(checkpoints)))
    assert said in str(caught.value)
    with caplog.at_level(logging.WARNING, "pargo_ds"):
        assert find_resume(checkpoints)[0] == step_folder(checkpoints, 2)
    assert said in caplog.text


def test_without_a_whole_checkpoint_the_error_lists_them_all(checkpoints):
    for step in (1, 2, 3):
        truncate(step_folder(checkpoints, step))
    with pytest.raises(CheckpointError) as caught:
        find_resume(checkpoints)
    assert str(caught.value).count("fragments/rank_00001.safetensors has") == 3


def test_a_manifest_of_another_format_is_refused(checkpoints):
    path = newest(checkpoints) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99, this release reads 3"):
        read_manifest(newest(checkpoints))


def test_latest_taken_back_by_hand_is_obeyed_and_said(checkpoints, caplog):
    point_latest(checkpoints, step_folder(checkpoints, 1))
    with caplog.at_level(logging.WARNING, "pargo_ds"):
        assert find_resume(checkpoints)[0] == step_folder(checkpoints, 1)
    assert (
        "latest names step_00000001; later ones (step_00000003, step_00000002) stay" in caplog.text
    )
    shutil.rmtree(step_folder(checkpoints, 1))
    assert find_resume(checkpoints)[0] == newest(checkpoints)


def test_what_a_killed_save_leaves_is_removed_and_a_replaced_folder_gets_its_name_back(checkpoints):
    unfinished = checkpoints / ".writing_step_00000004"
    shutil.copytree(newest(checkpoints), unfinished)
    newest(checkpoints).rename(checkpoints / ".replaced_step_00000003")
    shutil.copytree(step_folder(checkpoints, 1), checkpoints / ".replaced_step_00000001")
    shutil.copytree(step_folder(checkpoints, 1), checkpoints / ".removed_step_00000000")
    said = clean_up(checkpoints)
    assert len(said) == 4
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "latest", "step_00000001", "step_00000002", "step_00000003",
    ]  # fmt: skip
    assert find_resume(checkpoints)[0] == newest(checkpoints)


def test_a_checkpoint_keeps_the_totals_of_its_step_while_training_goes_on(tmp_path, monkeypatch):
    """The trainer adds to its totals before the background has written them."""
    parts = {"snapshot": [], "trained_shapes": {}, "optimizer_step": 1}
    for name, value in parts.items():
        monkeypatch.setattr(engine_state, name, lambda engine, value=value: value)
    go_on = threading.Event()
    plain = store.write_own
    monkeypatch.setattr(
        store, "write_own", lambda *arguments: (go_on.wait(30), plain(*arguments))[1]
    )
    facts = store.RunMetadata(
        model_fingerprint="", zero_stage=3, config={}, model_config={}, frozen_sources={}, frozen={}
    )
    saver, totals = store.Saver(tmp_path, facts, keep=1), {"samples": 1.0}
    saver.save(None, step=1, data_state={}, totals=totals)
    totals["samples"] = 2.0
    go_on.set()
    saver.wait()
    assert read_manifest(step_folder(tmp_path, 1)).totals == {"samples": 1.0}


def test_an_empty_folder_means_a_new_run(tmp_path):
    assert find_resume(tmp_path / "checkpoints") is None


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
