"""One real run whose checkpoints the tests damage copies of."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tiny import merged, run_command


@pytest.fixture(scope="session")
def finished_checkpoints(tiny_run, tmp_path_factory) -> Path:
    """checkpoints/ of a tiny run on two ranks: steps 1, 2 and 3."""
    output = tmp_path_factory.mktemp("checkpointed")
    changes = {"output": str(output), "train": {"steps": 3}, "checkpoint": {"every": 1, "keep": 3}}
    run_file = output / "run.yaml"
    run_file.write_text(yaml.safe_dump(merged(tiny_run, changes)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
    ]
    process = run_command([*command, "-m", "pargo_ds.train", str(run_file)])
    assert process.returncode == 0, process.stderr[-4000:]
    return output / "tiny" / "checkpoints"


@pytest.fixture
def checkpoints(finished_checkpoints, tmp_path) -> Path:
    """A copy of them to be damaged."""
    return Path(shutil.copytree(finished_checkpoints, tmp_path / "checkpoints"))
