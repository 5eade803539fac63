"""Benchmarks asked by an array of jobs, and scored by the job after it."""

from __future__ import annotations

import json
import sys

import official_layouts as layouts
import pytest
from tiny import ROOT, run_command
from tiny_export import write_export

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PARTS = 3


def test_an_array_asks_a_part_goes_back_into_the_queue_and_a_job_behind_it_scores(
    project, tokenizer_folder
):
    export = write_export(project.folder / "runs/evaluated/export", tokenizer_folder)
    mme = layouts.mme(project.folder / "MME", pairs=6)
    asked = [str(export), "--benchmark", f"mme={mme}", "--subset", "--batch", "2"]
    out = project.folder / "runs/evaluated/asked"
    output = project.cluster.command(
        "slurm/evaluate.sh", *asked, "--out", str(out), "--ranks", str(PARTS), cwd=project.folder
    )
    parts, table = (line.split()[-1] for line in output.splitlines())
    project.send_back_early(parts, "evaluate")
    assert project.cluster.field(table, "JobState") == "PENDING"
    assert project.wait_end(f"{parts}_0") == "COMPLETED", project.explain(parts)
    assert project.wait_end(table, seconds=480) == "COMPLETED", project.explain(table)
    assert "MME (mme), prompt official - PART OF IT" in project.log(table)
    assert json.loads((out / "scores.json").read_text())["mme"]["asked"] == 24
    # The parts asked what one process asks, each its own batches.
    alone = project.folder / "alone"
    command = [sys.executable, str(ROOT / "tools/evaluate.py"), *asked, "--out", str(alone)]
    assert run_command(command).returncode == 0
    units = sorted((alone / "mme/units").iterdir())
    assert len(units) > PARTS
    assert [(out / "mme/units" / unit.name).read_bytes() for unit in units] == [
        unit.read_bytes() for unit in units
    ]


def test_parts_that_fail_leave_no_table_waiting(project, tokenizer_folder):
    export = write_export(project.folder / "runs/third/export", tokenizer_folder)
    output = project.cluster.command(
        "slurm/evaluate.sh", str(export), "--benchmark", "mme=nowhere", "--out", "nothing",
        cwd=project.folder,
    )  # fmt: skip
    parts, table = (line.split()[-1] for line in output.splitlines())
    assert project.wait_end(f"{parts}_0") == "FAILED"
    assert project.wait_end(table) == "CANCELLED"
