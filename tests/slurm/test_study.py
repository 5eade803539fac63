"""A study's cells as an array, and the report by the job after it."""

from __future__ import annotations

import json

import pytest
from tiny_study import write_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_an_array_of_cells_and_a_report_make_a_study(project, tiny_run):
    study = write_study(project.folder, tiny_run)
    output = project.cluster.command("slurm/study.sh", str(study), "quick", cwd=project.folder)
    words = output.splitlines()
    assert words[0].startswith("cells 0,1: job")
    cells, report = (line.split()[-1] for line in words)
    assert project.wait_end(report, seconds=600) == "COMPLETED", project.explain(
        cells
    ) + project.explain(report)
    assert len(list((project.folder / "logs").glob(f"pargo-study-{cells}_*.out"))) == 2
    figures = json.loads((project.folder / "out/quick/report.json").read_text())
    assert set(figures["costs"]) == {"ParGo", "pooled"}
    # What is finished is not run again.
    output = project.cluster.command("slurm/study.sh", str(study), "quick", cwd=project.folder)
    assert output.startswith("report: job")
    assert project.wait_end(output.split()[-1]) == "COMPLETED"
