"""transformers' own test mix-ins, from the source distribution of each version; they are in no
wheel.

`transformers_tests(version)` is a folder for PYTHONPATH; in it lies the package
`transformers_tests`, whose modules are those of transformers' `tests` folder (`from
transformers_tests.test_modeling_common import ModelTesterMixin`). Downloaded once, by pip and with
a pinned hash, into `.transformers_tests`, which git ignores.

The distributions lack tests/generation. Whoever has a checkout may put its
tests/generation/test_utils.py in the place of the stand-in; the tests of generation then run with
the others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from tiny import ROOT

CACHE = ROOT / ".transformers_tests"
SHA256 = {
    "4.57.6": "55e44126ece9dc0a291521b7e5492b572e6ef2766338a610b9ab5afbb70689d3",
    "5.17.0": "a153be279169b55b92d8000bf4af294aed684503d091cca7804da2dd8a9de000",
    "5.24.0": "906cb8c3cb2123575e263962586a4d21a979ce97feeb95fe6aaf66fe6ae88bf3",
}
# test_modeling_common imports these two, which are in no distribution: here they have nothing to
# inherit.
ABSENT = {
    "generation/test_utils.py": "GenerationTesterMixin",
    "exporters/test_export.py": "ExportTesterMixin",
}


def transformers_tests(version: str) -> Path:
    """The folder to import `transformers_tests` from; skips, with the reason, where the sources
    cannot be had.

    Raises:
        KeyError: a version whose hash is not in SHA256.
    """
    folder = CACHE / version
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            _unpack(_download(version, Path(work)), Path(work) / "whole")
            try:
                os.rename(Path(work) / "whole", folder)
            except OSError:  # another process was first
                assert folder.is_dir()
    return folder


def _download(version: str, work: Path) -> Path:
    """pip's download of the source distribution; its metadata is made with this interpreter's
    setuptools.
    """
    wanted = work / "wanted.txt"
    wanted.write_text(f"transformers=={version} --hash=sha256:{SHA256[version]}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += [
        "--no-binary",
        ":all:",
        "--no-build-isolation",
        "--require-hashes",
        "-r",
        str(wanted),
        "-d",
        str(work),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        assert "hash" not in done.stderr.lower(), (
            done.stderr
        )  # the file is another one: never skipped in silence
        pytest.skip(
            f"pip cannot fetch the sources of transformers {version}: {done.stderr.strip()[-300:]}"
        )
    return next(work.glob("transformers-*.tar.gz"))


def _unpack(archive: Path, folder: Path) -> None:
    """The `tests` folder of a source distribution as `folder/transformers_tests`, absent modules as
    empty mix-ins.
    """
    with tarfile.open(archive) as tar:
        tests = [member for member in tar.getmembers() if member.name.split("/")[1:2] == ["tests"]]
        tar.extractall(folder, tests, filter="data")
    package = folder / "transformers_tests"
    shutil.move(next(folder.glob("transformers-*")) / "tests", package)
    shutil.rmtree(next(folder.glob("transformers-*")))
    for name, mixin in ABSENT.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(f"class {mixin}:\n    pass\n")
