"""Damage to a checkpoint is found and named, and the one before it is taken."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import pytest

from pargo_ds.checkpoint.manifest import point_latest, read_manifest, step_folder, verify_files
from pargo_ds.checkpoint.resume import clean_up, find_resume
from pargo_ds.errors import CheckpointError


def newest(checkpoints):
    return step_folder(checkpoints, 3)


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


def test_an_empty_folder_means_a_new_run(tmp_path):
    assert find_resume(tmp_path / "checkpoints") is None
