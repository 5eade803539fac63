"""From pre-training to an evaluated model in one command, and the jobs around training."""

from __future__ import annotations

import json
import math

import official_layouts as layouts
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_pipeline_goes_from_pre_training_to_an_evaluated_export(project):
    pretrain = project.run_file("first", train={"steps": 20})
    finetune = project.run_file(
        "second", train={"steps": 4}, start_from=str(project.run_dir("first") / "export")
    )
    mme = layouts.mme(project.folder / "MME", pairs=3)
    benchmarks = ["--benchmark", f"mme={mme}", "--subset", "--batch", "4", "--ranks", "2"]
    command = ["slurm/pipeline.sh", str(pretrain), str(finetune), *benchmarks]
    output = project.cluster.command(*command, cwd=project.folder)
    *jobs, parts, table = [line.split()[-1] for line in output.splitlines()]
    assert [line.split()[0] for line in output.splitlines()] == [
        "pretrain.sh", "convert.sh", "finetune.sh", "convert.sh", "evaluate.sh", "2", "the"
    ]  # fmt: skip
    # A first stage that goes back into the queue holds the others up, and does not let them go.
    project.wait_step(jobs[0], "first", 4)
    project.cluster.command("scancel", "--batch", "--signal=USR1", jobs[0])
    project.wait_requeued(jobs[0], "first")
    waiting = [*jobs[1:], f"{parts}_0", table]
    assert all(project.cluster.field(job, "JobState") == "PENDING" for job in waiting)
    for job in jobs:
        assert project.wait_end(job, seconds=480) == "COMPLETED", project.explain(job)
    assert project.state("first")["state"] == project.state("second")["state"] == "done"
    assert (project.run_dir("second") / "export/config.json").is_file()
    figures = json.loads((project.run_dir("second") / "evaluation.json").read_text())
    assert 0 < figures["validation"]["loss"] < 2 * math.log(400)
    assert "held-out loss" in project.log(jobs[-1])
    # It ends with the table of the benchmarks.
    assert project.wait_end(table, seconds=480) == "COMPLETED", project.explain(table)
    assert "MME (mme), prompt official - PART OF IT" in project.log(table)
    asked = project.run_dir("second") / "asked"
    assert json.loads((asked / "scores.json").read_text())["mme"]["asked"] == 12
    assert len(list((asked / "mme/units").iterdir())) == 3
    # What is finished is not done again.
    output = project.cluster.command(*command[:3], cwd=project.folder)
    assert [line.split()[0] for line in output.splitlines()] == ["evaluate.sh"]
    assert project.wait_end(output.split()[-1]) == "COMPLETED"


def test_a_stage_that_fails_ends_the_pipeline(project):
    pretrain = project.run_file("lost", data={"validation": "nowhere"})
    finetune = project.run_file("never", start_from=str(project.run_dir("lost") / "export"))
    # The ranks cannot write their last word: their status 2 has to be heard, although srun may end
    # one by a signal.
    (project.run_dir("lost") / "state.json").mkdir(parents=True)
    output = project.cluster.command(
        "slurm/pipeline.sh", str(pretrain), str(finetune), cwd=project.folder
    )
    jobs = [line.split()[-1] for line in output.splitlines()]
    states = [project.wait_end(job) for job in jobs]
    assert states == ["FAILED"] + ["CANCELLED"] * 4
    assert project.cluster.field(jobs[0], "ExitCode") == "2:0"
    assert "starting again would not help: a rank ended with status 2" in project.log(jobs[0])
    assert not project.run_dir("never").exists()
