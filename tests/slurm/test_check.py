"""slurm/check.sh on a real Slurm: it passes what works, and names what would fail later."""

from __future__ import annotations

import subprocess

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ON_GPUS = {
    "GPUS_PER_NODE": "8",
    "RANKS_PER_NODE": "8",
    "CPUS_PER_TASK": "8",
    "TIME": "2-00:00:00",
    "SIGNAL_LEAD": "600",
    "GPU": "h100",
    "NETWORK": "8x400g",
}


def check(project, *run_files: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["slurm/check.sh", *map(str, run_files)], cwd=project.folder, env=project.cluster.environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_good_site_passes_on_one_and_on_two_nodes(project):
    project.site(**ON_GPUS, NODES="1-2")
    run_file = project.run_file("fits", batch={"packs_per_step": 16})
    process = check(project, run_file)
    assert process.returncode == 0, process.stdout + process.stderr
    training, small = (
        ("pretrain.sh", "finetune.sh", "study.sh"),
        ("convert.sh", "shards.sh", "caption.sh"),
    )
    for script in (*training, *small, "evaluate.sh"):
        assert f"ok     {script}: Job " in process.stdout
    for nodes in (1, 2):
        assert f"ok     {run_file} on {nodes} x 8 ranks" in process.stdout
    assert f"ok     {run_file}: plan for 8 x h100: " in process.stdout
    assert "cannot be checked: this Slurm has no accounting" in process.stdout


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"GPUS_PER_NODE": "9", "RANKS_PER_NODE": "9"}, "pretrain.sh: "),
        ({"PARTITION": "fast"}, "invalid partition specified: fast"),
        ({"NODES": "3"}, "pretrain.sh: "),
        ({"TIME": "8-00:00:00"}, "time 8-00:00:00 is more than partition gpu gives (7-00:00:00)"),
        ({"RANKS_PER_NODE": "4"}, "each rank takes one of SITE_GPUS_PER_NODE=8"),
        ({"SIGNAL_LEAD": "90000"}, "no time to train"),
        ({"PARTITON": "gpu"}, "SITE_PARTITON is not known"),
        ({"LOGS": "/proc/logs"}, "log folder SITE_LOGS=/proc/logs cannot be written"),
    ],
)
def test_what_would_fail_later_is_named(project, changes, said):
    project.site(**{**ON_GPUS, **changes})
    process = check(project, "no_such_file.yaml")
    assert process.returncode == 1
    faults = [line for line in process.stdout.splitlines() if line.startswith("FAULT")]
    assert any(said in line for line in faults), process.stdout
    assert any(
        "run file no_such_file.yaml does not exist" in line for line in process.stdout.splitlines()
    )


def test_a_run_that_does_not_fit_the_sites_gpus_is_a_fault(project):
    project.site(**ON_GPUS | {"GPU": "l40s"})
    # few and wide layers, which are planned fast: 98 billion weights
    architecture = {"hidden_size": 8192, "intermediate_size": 2_000_000}
    batch = {"packs_per_step": 16}
    process = check(
        project, project.run_file("too_large", batch=batch, llm={"architecture": architecture})
    )
    assert process.returncode == 1
    assert "does not fit: ZeRO-3" in process.stdout
    assert "no ZeRO stage fits" in process.stdout


def test_without_the_name_of_its_gpus_a_site_is_told_that_nothing_is_planned(project):
    project.site(**ON_GPUS | {"GPU": ""})
    run_file = project.run_file("not_planned", batch={"packs_per_step": 16})
    assert "was not planned: site.env does not set SITE_GPU" in check(project, run_file).stdout


def test_directives_after_the_first_command_are_named(project):
    script = project.folder / "slurm/late.sh"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=1\n\nset -u\n#SBATCH --time=1\n")
    try:
        project.site(**ON_GPUS)
        assert (
            "slurm/late.sh: #SBATCH after the first command is not read: line 5"
            in check(project, "none").stdout
        )
    finally:
        script.unlink()
