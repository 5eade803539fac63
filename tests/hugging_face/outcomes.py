"""Run a file of transformers' own tests with one transformers line, and compare what failed with
what is known to.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sources import transformers_tests
from tiny import ROOT
from transformers_lines import line_path


def outcomes(file: str, version: str, work: Path) -> dict[str, str]:
    """Name of each test of `file` (beside this one) -> passed, failed or skipped, in a process of
    its own.

    A test of which one part (subtest) failed has failed. Skips, with the reason, where the line or
    the sources lack.
    """
    if importlib.util.find_spec("parameterized") is None:
        pytest.skip("transformers' tests import parameterized, which is not installed (extra dev)")
    path = [
        *line_path(version),
        str(transformers_tests(version)),
        str(ROOT),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "home"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    # Their markers and warnings are not ours: no configuration.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(ROOT),
        "-p",
        "no:cacheprovider",
    ]
    command += ["--junitxml", str(work / "outcomes.xml"), str(Path(__file__).with_name(file))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout[-5000:] + done.stderr[-5000:]
    found: dict[str, str] = {}
    for case in ElementTree.parse(work / "outcomes.xml").iter("testcase"):
        name = case.attrib["name"].partition(" ")[0]
        if case.find("failure") is not None or case.find("error") is not None:
            found[name] = "failed"
        elif found.get(name) != "failed":
            found[name] = "passed" if case.find("skipped") is None else "skipped"
    return found


def compare(found: dict[str, str], known: dict[str, str]) -> None:
    """Fail when a test failed that is not in `known` (name -> reason), or one that is in it passed.

    Names of `known` that a line does not have, or skips, are nobody's fault.
    """
    unexplained = sorted(
        name for name, outcome in found.items() if outcome == "failed" and name not in known
    )
    mended = sorted(name for name in known if found.get(name) == "passed")
    assert not unexplained, f"failed without a known reason: {unexplained}"
    assert not mended, f"listed as failing, but they pass; take them off the list: {mended}"
