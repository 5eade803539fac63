"""What holds for the scripts without any Slurm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny import ROOT

SLURM = ROOT / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sh"))
JOBS = [script for script in SCRIPTS if "\n#SBATCH" in script.read_text()]
SITE_OPTIONS = (
    "partition",
    "account",
    "qos",
    "gpus",
    "gres",
    "constraint",
    "cpus-per-task",
    "mem",
    "reservation",
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A project's folder without a site.env."""
    shutil.copytree(SLURM, tmp_path / "slurm", ignore=shutil.ignore_patterns("site.env"))
    for name in ("pargo_ds", "ds_configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def bash(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "PARGO_", "SITE_"))
    }
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_bash(script):
    process = bash("bash", "-n", script, cwd=ROOT)
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    process = bash("shellcheck", "-x", "-e", "SC2034", *SCRIPTS, cwd=ROOT)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_values_of_a_site_stand_in_site_env_only(script):
    directives = re.findall(r"^#SBATCH +--([a-z-]+)", script.read_text(), re.M)
    assert not [name for name in directives if name.startswith(SITE_OPTIONS)]
    assert {"requeue", "open-mode", "signal", "output"} <= set(directives)
    body = script.read_text().split("set -uo pipefail")[0]
    assert all(line.startswith("#") or not line for line in body.splitlines()), (
        "a directive after a command is not read"
    )


@pytest.mark.parametrize(
    "script", [*JOBS, SLURM / "pipeline.sh", SLURM / "check.sh"], ids=lambda path: path.name
)
def test_help_says_how_it_is_called_and_queues_nothing(folder, script):
    for arguments in (["--help"], ["ds_configs/other.yaml", "-h"]):
        process = bash(folder / "slurm" / script.name, *arguments, cwd=folder)
        assert process.returncode == 0, process.stderr
        assert f"slurm/{script.name}" in process.stdout
        assert "SBATCH --" not in process.stdout
        assert "set -uo" not in process.stdout


def test_the_example_names_every_value_that_the_scripts_read():
    example = set(re.findall(r"^(SITE_\w+)=", (SLURM / "site.env.example").read_text(), re.M))
    read = {
        name for script in SCRIPTS for name in re.findall(r"SITE_[A-Z0-9_]+", script.read_text())
    }
    assert read == example


@pytest.mark.parametrize(
    "script", [*JOBS, SLURM / "pipeline.sh", SLURM / "check.sh"], ids=lambda path: path.name
)
def test_without_site_env_nothing_is_queued(script, folder):
    for name in ("sbatch", "srun"):  # whatever would be queued or started leaves a trace
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ntouch {folder}/queued\n")
        program.chmod(0o755)
    path = f"{folder}/bin:{os.environ['PATH']}"
    processes = [bash(f"slurm/{script.name}", cwd=folder, PATH=path)]
    if script in JOBS:  # Slurm runs a copy of the script
        copy = folder / "spool/slurm_script"
        copy.parent.mkdir()
        shutil.copy(script, copy)
        processes.append(
            bash(
                "bash", copy, cwd=folder, PATH=path, SLURM_SUBMIT_DIR=str(folder), SLURM_JOB_ID="1"
            )
        )
    for process in processes:
        assert process.returncode == 2
        assert "cp slurm/site.env.example slurm/site.env" in process.stderr
    assert not (folder / "queued").exists()


def test_sbatch_outside_of_the_project_says_so(folder, tmp_path):
    copy = folder / "spool/slurm_script"
    copy.parent.mkdir()
    shutil.copy(SLURM / "pretrain.sh", copy)
    process = bash("bash", copy, cwd=tmp_path, SLURM_SUBMIT_DIR="/", SLURM_JOB_ID="1")
    assert process.returncode == 2
    assert "call sbatch in the project's folder" in process.stderr


def test_values_that_are_missing_are_named(folder):
    text = (SLURM / "site.env.example").read_text().replace("SITE_TIME=2-00:00:00", "SITE_TIME=")
    (folder / "slurm/site.env").write_text(text)
    process = bash("slurm/pretrain.sh", cwd=folder, SITE_TIME="1")
    assert process.returncode == 2
    assert "slurm/site.env does not set SITE_TIME" in process.stderr


@pytest.mark.parametrize(
    "time, seconds",
    [
        ("90", 5400),
        ("5:30", 330),
        ("1:00:00", 3600),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("2-00:00:08", 172808),
    ],
)
def test_times_are_read_as_slurm_reads_them(time, seconds):
    process = bash("bash", "-c", f"source slurm/core.sh && in_seconds {time}", cwd=ROOT)
    assert process.stdout.strip() == str(seconds)


def test_secrets_do_not_get_into_the_log():
    job = "SLURM_JOB_ID=1 SLURM_JOB_NAME=x SLURM_JOB_NODELIST=n PROJECT=p"
    script = f"source slurm/core.sh; {job}; python_here() {{ :; }}; describe_job"
    secrets = {
        "WANDB_API_KEY": "hush1",
        "HF_TOKEN": "hush2",
        "AWS_SECRET_ACCESS_KEY": "hush3",
        "DS_PASSWORD": "hush4",
    }
    shown = {"S3_ENDPOINT_URL": "https://user:hush5@store.example", "NCCL_DEBUG": "WARN"}
    process = bash("bash", "-c", script, cwd=ROOT, **secrets, **shown)
    assert "hush" not in process.stdout
    assert "S3_ENDPOINT_URL=https://...@store.example" in process.stdout
    assert "NCCL_DEBUG=WARN" in process.stdout


def test_a_run_folder_that_cannot_be_written_is_not_queued_for_ever():
    script = "source slurm/core.sh; source slurm/training.sh; RUN_DIR=/proc/sys; count_restarts; echo went on"
    process = bash("bash", "-c", script, cwd=ROOT)
    assert process.returncode == 1
    assert (
        "/proc/sys cannot be written: make it writable or make room, then submit again"
        in process.stderr
    )
    assert "went on" not in process.stdout
