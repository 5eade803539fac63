"""A run's folder that cannot be written: said before anything is loaded, and survived in the middle
of a run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tiny import ROOT, merged, read_state, run_command

from pargo_ds.checkpoint.manifest import newest, read_manifest, verify_files
from pargo_ds.training.survival import write_state


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A file system of its own, so that it can become read-only: permissions do not bind root."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, how: str) -> bool:
    """False as long as somebody has a file open for writing."""
    return (
        subprocess.run(
            ["mount", "-o", f"remount,{how}", str(folder)], capture_output=True
        ).returncode
        == 0
    )


def command(tiny_run, folder: Path, steps: int) -> list[str]:
    changes = {
        "output": str(folder),
        "train": {"steps": steps},
        "checkpoint": {"every": 2, "keep": 2},
    }
    path = folder.parent / "run.yaml"
    path.write_text(yaml.safe_dump(merged(tiny_run, changes)))
    return [sys.executable, "-m", "pargo_ds.train", str(path)]


@pytest.mark.parametrize(
    "place", ["", "tiny", "tiny/checkpoints"], ids=["output", "run", "checkpoints"]
)
def test_a_read_only_folder_is_named_before_anything_is_loaded(tiny_run, tmp_path, place):
    output = tmp_path / "output"
    with mounted(output / place):
        assert remount(output / place, "ro")
        process = run_command(command(tiny_run, output, 4))
        assert process.returncode == 2, process.stderr[-3000:]
        (line,) = [
            line
            for line in process.stderr.splitlines()
            if line.startswith("pargo_ds.train: error: ")
        ]
        assert f"{output / (place or 'tiny')} cannot be written (Read-only file system)" in line
        assert "make the folder writable on every node, make room, or choose another place" in line
        assert "Traceback" not in process.stderr
        assert "projector" not in process.stderr  # the table of what trains comes with the model
        if place == "tiny/checkpoints":
            assert read_state(output / "tiny")["restart"] is False


def test_a_full_disk_has_room_for_the_last_word(tmp_path):
    folder = tmp_path / "full"
    with mounted(folder):
        write_state(folder, "running")
        with open(folder / "data", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:  # the last write is cut short, the one after it fails
                file.write(bytes(1 << 20))
        with pytest.raises(OSError, match="No space left"):
            (folder / "more").write_bytes(b"1")
        for reason in ("could not be written", "\N{GRINNING FACE}" * 10_000):
            write_state(folder, "failed", reason=reason, restart=False)
            state = read_state(folder)
            assert (state["state"], state["restart"]) == ("failed", False)
            assert reason.startswith(state["reason"])
            assert state["reason"]
        assert {path.name for path in folder.iterdir()} == {"state.json", "data", "more"}


def until(condition, process: subprocess.Popen, timeout: float = 150) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stderr.read()[-4000:]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_ends_the_run_and_leaves_the_checkpoint_before(
    tiny_run, tmp_path
):
    output = tmp_path / "output"
    checkpoints = output / "tiny" / "checkpoints"
    with mounted(checkpoints):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "DS_ACCELERATOR": "cpu",
        }
        process = subprocess.Popen(
            command(tiny_run, output, 5000), env={**env, "CUDA_VISIBLE_DEVICES": ""}, cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(
            lambda: (checkpoints / "step_00000004").is_dir() and remount(checkpoints, "ro"), process
        )
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2, errors[-3000:]
        assert "could not be written" in errors
        assert "Read-only file system" in errors
        assert "the checkpoint before it stays" in errors
        assert "Traceback" not in errors
        state = read_state(output / "tiny")
        assert (state["state"], state["restart"]) == ("failed", False)
        folder = newest(checkpoints)
        verify_files(folder, read_manifest(folder))
        assert remount(checkpoints, "rw")  # what the user does
        step = int(folder.name[5:])
        process = run_command([*command(tiny_run, output, 5000), "--stop-after", str(step + 2)])
        assert process.returncode == 0, process.stderr[-3000:]
        assert f"continuing after step {step} " in process.stderr
        assert not list(checkpoints.glob(".writing_*"))
