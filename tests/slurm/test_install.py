"""Where Slurm is missing it is installed, or the tests say why not: with real programs, on a PATH
without Slurm.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import install_slurm
import pytest
from tiny import ROOT

SCRIPT = ROOT / "tests/install_slurm.py"


@pytest.fixture
def path_without_slurm(tmp_path) -> Path:
    """A folder for PATH that has apt-get, what it calls, and the programs that every system has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("apt-get", "dpkg", "unshare", "setpriv", "sh"):
        if shutil.which(name):
            (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def apt_without_packages(tmp_path) -> Path:
    """A configuration of apt-get that knows no package and has no source: nothing of this machine
    is touched.
    """
    (tmp_path / "state/lists/partial").mkdir(parents=True)
    (tmp_path / "cache/archives/partial").mkdir(parents=True)
    (tmp_path / "state/status").touch()
    path = tmp_path / "apt.conf"
    path.write_text(
        f'Dir::State "{tmp_path}/state"; Dir::State::status "{tmp_path}/state/status"; Dir::Cache "{tmp_path}/cache";'
        'Dir::Etc::SourceList "/dev/null"; Dir::Etc::SourceParts "/dev/null";\n'
    )
    return path


def install(path: Path, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name != install_slurm.DECLINE}
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env={**clean, "PATH": str(path), **environment}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_what_is_there_is_not_installed_again(tmp_path):
    for name in install_slurm.PROGRAMS:
        (tmp_path / name).touch(mode=0o755)
    process = install(tmp_path)  # without any apt-get
    assert process.returncode == 0
    assert process.stdout == "Slurm is there: tests/slurm can run\n"


def test_declined_nothing_is_installed_and_the_reason_names_the_command(path_without_slurm):
    process = install(path_without_slurm, PARGO_INSTALL_SLURM="no")
    assert process.returncode == 1
    assert (
        "slurmctld, slurmd, sbatch, munged not installed, and not installed now: PARGO_INSTALL_SLURM=no"
        in process.stdout
    )
    assert (
        "by hand: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
        in process.stdout
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the reason is another one")
def test_without_apt_get_the_reason_says_so(path_without_slurm):
    (path_without_slurm / "apt-get").unlink(missing_ok=True)
    assert "not installed now: there is no apt-get" in install(path_without_slurm).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives its rights away here")
def test_without_root_the_reason_says_so():
    with multiprocessing.get_context("fork").Pool(
        1, initializer=os.setuid, initargs=(65534,)
    ) as nobody:
        assert nobody.apply(install_slurm.why_not) == "installing needs root"


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("apt-get"), reason="needs root and apt-get"
)
def test_an_apt_get_that_fails_is_quoted(path_without_slurm, apt_without_packages):
    process = install(path_without_slurm, APT_CONFIG=str(apt_without_packages))
    assert process.returncode == 1
    assert "Unable to locate package slurmctld" in process.stdout  # all that it said
    assert process.stdout.splitlines()[-1].startswith("tests/slurm will be skipped: ")
    assert (
        "failed with status 100: E: Unable to locate package munge"
        in process.stdout.splitlines()[-1]
    )
