"""A converter's output is whole or absent, and nothing is lost by accident."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from tiny import ROOT

from pargo_ds.errors import CheckpointError
from pargo_ds.files.whole_output import whole_output


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_output_gets_its_name_at_the_end(tmp_path):
    with whole_output(tmp_path / "deep" / "out", force=False, needed=1) as aside:
        (aside / "file").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with (
        pytest.raises(FileNotFoundError),
        whole_output(tmp_path / "out", force=True, needed=1) as aside,
    ):
        (aside / "in" / "no folder").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_force_replaces_and_its_absence_refuses(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with (
        pytest.raises(CheckpointError, match="exists; .*--force"),
        whole_output(tmp_path / "out", force=False, needed=1),
    ):
        pass
    with whole_output(tmp_path / "out", force=True, needed=1) as aside:
        (aside / "new").touch()
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_source_is_never_replaced(tmp_path):
    source = tmp_path / "run" / "export"
    source.mkdir(parents=True)
    for out in (source, tmp_path / "run"):
        refused = pytest.raises(CheckpointError, match="which replacing it would destroy")
        with refused, whole_output(out, force=True, needed=1, sources=[source]):
            pass
    assert source.is_dir()


def test_a_disk_that_is_too_full_is_found_before_anything_is_written(tmp_path):
    refused = pytest.raises(
        CheckpointError, match="GB free, the conversion writes 1000000000.00 GB"
    )
    with refused, whole_output(tmp_path / "out", force=False, needed=10**18):
        pass
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from pargo_ds.files.whole_output import whole_output
with whole_output(Path(sys.argv[1]), force=True, needed=1) as aside:
    (aside / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_the_next_conversion_starts_cleanly(tmp_path):
    out = tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".writing_out"]
    with whole_output(out, force=False, needed=1) as aside:
        (aside / "whole").touch()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["whole"]


def test_a_folder_whose_replacement_was_cut_off_gets_its_name_back(tmp_path):
    """Killed between the two renames: the old folder is there under another name."""
    (tmp_path / ".replaced_out").mkdir()
    (tmp_path / ".replaced_out" / "old").touch()
    with (
        pytest.raises(CheckpointError, match="exists"),
        whole_output(tmp_path / "out", force=False, needed=1),
    ):
        pass
    assert names(tmp_path / "out") == ["old"]
