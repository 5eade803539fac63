"""Faults of a site, of nodes and of users that the scripts must name, and what must not happen.

Without any Slurm.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny import ROOT

SITE = """SITE_NODES=1
SITE_GPUS_PER_NODE=0
SITE_RANKS_PER_NODE=4
SITE_CPUS_PER_TASK=1
SITE_TIME=30
SITE_SMALL_CPUS=1
SITE_SMALL_TIME=30
SITE_SIGNAL=USR1
SITE_SIGNAL_LEAD=60
SITE_MAX_RESTARTS=1
SITE_LOGS=logs
SITE_SCRATCH=/tmp
SITE_PYTHON=./python
"""
# What job 7 is to Slurm stands in job_7; every call of sbatch and scontrol is noted.
SBATCH = """#!/bin/bash
printf '%s\n' "sbatch $*" >>calls
[ ! -e refuse ] || { echo "sbatch: error: Requested node configuration is not available" >&2; exit 1; }
echo 12
"""
SCONTROL = """#!/bin/bash
printf '%s\n' "scontrol $*" >>calls
case "$1 $2" in
"show job") cat "job_$4" 2>/dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; } ;;
requeue*) kill -TERM "$PPID"; exit 143 ;;
update*) [ -e terminated ] || { touch terminated; exit 143; } ;;
esac
"""
# Says of each run file what run_facts.py would: the run's folder, six packs a step.
PYTHON = """#!/bin/bash
printf '%s\n' "$PWD/a run" 6 somewhere ''
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A project's folder with a site.env, stand-ins for Slurm's commands, and a run whose path has
    a blank.
    """
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm", ignore=shutil.ignore_patterns("site.env"))
    (tmp_path / "slurm/site.env").write_text(SITE)
    for name, text in (("bin/sbatch", SBATCH), ("bin/scontrol", SCONTROL), ("python", PYTHON)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "run.yaml").touch()
    (tmp_path / "a run").mkdir()
    return tmp_path


def call(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "PARGO_", "SITE_"))
    }
    path = f"{folder}/bin:{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env={**clean, "PATH": path, **environment}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def in_job(
    folder: Path, script: str, job: str = "9", **environment: str
) -> subprocess.CompletedProcess:
    """Some lines of a job's script, after all that it sources."""
    prepared = 'source slurm/core.sh; set -u; open_project slurm; source slurm/training.sh; RUN_DIR="$PWD/a run"; '
    return call(folder, "bash", "-c", prepared + script, SLURM_JOB_ID=job, **environment)


def calls(folder: Path) -> str:
    return (folder / "calls").read_text() if (folder / "calls").exists() else ""


@pytest.mark.parametrize(
    "change, said",
    [
        ("SITE_WANDB = offline", "slurm/site.env: line 14 failed: SITE_WANDB = offline"),
        (
            "module() { false; return 3; }\nsite_environment() {\n    true\n    module load cuda\n    true\n}",
            "site_environment of slurm/site.env: line 17 failed: module load cuda",
        ),
        (
            "site_environment() { true; return 5; }",
            "site_environment of slurm/site.env: it ended with status 5",
        ),
        ("SITE_PYTHON=no-python", "SITE_PYTHON=no-python cannot be run"),
        ("SITE_PYTHON=/", "SITE_PYTHON=/ cannot be run"),
        ("SITE_PYTHON=false", "SITE_PYTHON=false could not read the run file (status 1)"),
        (
            "SITE_RANKS_PER_NODE=4",
            "batch.packs_per_step=6 divides over no number of nodes with SITE_RANKS_PER_NODE=4",
        ),
    ],
)
@pytest.mark.parametrize("script", ["pretrain.sh run.yaml", "pipeline.sh run.yaml run.yaml"])
def test_a_fault_of_the_site_is_named_with_its_setting_and_queues_nothing(
    folder, script, change, said
):
    (folder / "slurm/site.env").write_text(SITE + change + "\n")
    process = call(folder, *f"slurm/{script}".split())
    assert process.returncode == 2, process.stdout + process.stderr
    assert said in process.stderr
    assert "sbatch" not in calls(folder)


def test_a_merge_gets_what_is_its_own_and_the_parts_the_rest(folder):
    source = "llava out in.json --work w --max-rejects 0.5 --run a.yaml --workers=2"
    process = call(folder, "slurm/shards.sh", "3", *source.split())
    assert process.returncode == 0, process.stdout + process.stderr
    parts, merge = calls(folder).splitlines()
    assert parts.endswith("shards.sh 3 llava out in.json --work w --max-rejects 0.5 --workers=2")
    assert "--array=0-2" in parts
    assert merge.endswith("shards.sh 1 merge out --work w --run a.yaml")


@pytest.mark.parametrize("source", ["mixture", "scenes", "lengths"])
def test_a_source_that_is_not_built_in_parts_queues_nothing(folder, source):
    process = call(folder, "slurm/shards.sh", "3", source, "out", "in.json")
    assert process.returncode == 2, process.stdout + process.stderr
    assert f"{source} is not built in parts" in process.stderr
    assert "sbatch" not in calls(folder)


def test_what_a_called_function_does_inside_is_its_own_affair(folder):
    environment = (
        "f() { false; true; }\nsite_environment() {\n    f\n    [ -e nowhere ] && f\n    true\n}\n"
    )
    (folder / "slurm/site.env").write_text(SITE.replace("NODE=4", "NODE=3") + environment)
    process = call(folder, "slurm/pretrain.sh", "run.yaml")
    assert (process.returncode, process.stdout) == (0, "12\n"), process.stderr


@pytest.mark.parametrize("script", ["pretrain.sh run.yaml", "pipeline.sh run.yaml run.yaml"])
def test_where_bad_nodes_leave_too_few_the_file_is_named(folder, script):
    (folder / "slurm/site.env").write_text(
        SITE.replace("NODE=4", "NODE=3") + "SITE_SBATCH_OPTIONS=(--exclude=slow)\n"
    )
    (folder / "a run/bad_nodes").write_text(
        "node1 2026-01-01 bad\nnode2 2026-01-01 bad\nnode1 2026-01-02 bad\n"
    )
    (folder / "refuse").touch()
    process = call(folder, *f"slurm/{script}".split())
    assert process.returncode != 0
    assert (
        f"sbatch was to leave out node1,node2, as {folder}/a run/bad_nodes says: delete the lines"
        in process.stderr
    )
    assert "--exclude=slow,node1,node2 slurm/pretrain.sh" in calls(
        folder
    )  # the site's own stay out


def test_a_rank_that_says_do_not_start_again_is_heard_where_state_json_could_not_be_written(folder):
    (folder / "a run/state.json").write_text(
        '{"state": "running", "step": null, "reason": "", "restart": true, "t": 1}'
    )
    process = in_job(folder, "STATUS=2 STEP_AT_START=0 RESTARTS=0 USER_STOP=; after_training")
    assert process.returncode == 2, process.stdout + process.stderr
    assert "starting again would not help: a rank ended with status 2" in process.stdout
    assert "requeue" not in calls(folder)


def test_a_printed_command_can_be_typed_where_a_path_has_blanks(folder):
    (folder / "a run/wandb/offline-run-1").mkdir(parents=True)
    printed = in_job(folder, "wandb_hint").stdout.partition("there is a network: ")[2].strip()
    process = call(folder, "bash", "-c", printed.replace("wandb sync", "ls -d"))
    assert process.stdout.strip() == f"{folder}/a run/wandb/offline-run-1"


HOLDERS = {
    "JobId=7 JobState=RUNNING Reason=None Command=/FAIL/COMPLETED": 2,
    "JobId=7 JobState=PENDING Reason=BeginTime": 2,
    "JobId=7 JobState=SUSPENDED Reason=None": 2,
    "JobId=7 JobState=NODE_FAIL Reason=None": 0,
    "JobId=7 JobState=CANCELLED Reason=None": 0,
    "": 0,
}


@pytest.mark.parametrize("job", HOLDERS)
def test_a_run_is_its_jobs_as_long_as_slurm_knows_that_job(folder, job):
    if job:
        (folder / "job_7").write_text(job)
    (folder / "a run/slurm_job").write_text("7\n")
    process = in_job(folder, "hold_run; echo went on")
    assert process.returncode == HOLDERS[job], process.stderr
    assert ("went on" in process.stdout) == (HOLDERS[job] == 0)
    assert (folder / "a run/slurm_job").read_text() == ("7\n" if HOLDERS[job] else "9\n")
    if HOLDERS[job]:
        state, reason = (word.partition("=")[2] for word in job.split()[1:3])
        assert (
            f"{folder}/a run is held by job 7 ({state}, {reason}): scancel 7 first"
            in process.stderr
        )
        # The holder itself comes back from the queue.
        assert "went on" in in_job(folder, "hold_run; echo went on", job="7").stdout


def test_a_run_that_a_process_outside_of_slurm_trains_is_left_alone(folder):
    (folder / "a run/.lock").write_text("host here, process 5\n")
    with open(folder / "a run/.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = in_job(folder, "LOCK_WAIT_S=0; hold_run; echo went on")
    assert process.returncode == 2
    assert "is being trained by another process (host here, process 5)" in process.stderr
    assert r"touch " + str(folder) + r"/a\ run/STOP" in process.stderr
    assert (folder / "a run/slurm_job").read_text() == ""
    assert "went on" in in_job(folder, "LOCK_WAIT_S=0; hold_run; echo went on").stdout


def test_a_part_of_an_array_goes_back_alone_and_what_it_was_submitted_without_stays_out(folder):
    """The last part of an array bears the array's number, which would put back all parts."""
    (folder / "job_7_2").write_text("JobId=7 JobState=RUNNING ExcNodeList=slow[1-2]\n")
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    process = in_job(folder, "requeue node3", job="7", **array)
    assert process.returncode == 1, process.stdout + process.stderr
    said = [line for line in calls(folder).splitlines() if "show" not in line]
    update = "scontrol update JobId=7_2 ExcNodeList=slow[1-2],node3"
    assert said == ["scontrol requeue 7_2", update, update]  # Slurm's SIGTERM ends the first
    assert "left out from now on: slow[1-2],node3" in process.stdout


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING"])
def test_a_job_that_slurm_is_ending_is_not_put_back(folder, state):
    (folder / "job_9").write_text(
        f"JobId=9 JobState={state} StartTime=2999-01-01T00:00:00 TimeLimit=01:00:00\n"
    )
    process = in_job(folder, 'requeue ""')
    assert process.returncode == 1
    assert "cancelled, or put back into the queue by Slurm itself" in process.stdout
    assert "requeue" not in calls(folder)


def test_a_stop_file_that_came_too_late_for_a_start_is_kept_for_the_next(folder):
    (folder / "job_9").write_text("JobId=9 JobState=RUNNING ExcNodeList=(null)\n")
    (folder / "a run/STOP").touch()
    process = in_job(folder, "STATUS=1 STEP_AT_START=0 RESTARTS=0 USER_STOP=; after_training")
    assert "scontrol requeue 9" in calls(folder), process.stdout + process.stderr
    start = "PARGO_SUBMITTED=$(date +%s); look_at_stop_file"
    process = in_job(folder, start, SLURM_RESTART_COUNT="1")
    assert process.returncode == 3
    assert "was put into" in process.stdout


def test_benchmarks_are_asked_by_an_array_and_scored_by_a_job_that_depends_on_it(folder):
    (folder / "export").mkdir()
    (folder / "export/config.json").touch()
    asked = ["slurm/evaluate.sh", "export", "--benchmark", "mme=MME", "--ranks=3"]
    process = call(folder, *asked)
    assert process.returncode == 2
    assert "--benchmark needs --out OUT" in process.stderr
    assert calls(folder) == ""
    process = call(folder, *asked, "--out", "o", "--", "--array=0-2%1")
    assert process.stdout == "3 parts that ask: job 12\nthe table of o: job 12\n", process.stderr
    parts, table = calls(folder).splitlines()
    assert "--array=0-2 " in parts
    assert "--array=0-2%1 slurm/evaluate.sh export --benchmark mme=MME" in parts
    assert "--dependency=afterok:12 --kill-on-invalid-dep=yes" in table
    assert table.endswith("slurm/evaluate.sh --score o")


def test_captions_are_scored_by_an_array_and_decided_and_reported_behind_it(folder):
    process = call(folder, "slurm/caption.sh", "3", "score", "run", "--scorers", "learned", "--",
                   "--array=0-2%1")  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout == "3 parts of score: job 12\ndecide: job 12\nreport: job 12\n"
    parts, decided, reported = calls(folder).splitlines()
    assert "--array=0-2 " in parts
    assert parts.endswith("--array=0-2%1 slurm/caption.sh 3 score run --scorers learned")
    for job, stage in ((decided, "decide"), (reported, "report")):
        assert "--dependency=afterok:12 --kill-on-invalid-dep=yes" in job
        assert job.endswith(f"slurm/caption.sh stage {stage} run")


def test_images_are_selected_by_an_array_and_chosen_by_a_job_behind_it(folder):
    process = call(folder, "slurm/caption.sh", "2", "select", "coco", "run", "a.json", "--share=1")
    assert process.stdout == "2 parts of select: job 12\nchoose: job 12\n", process.stderr
    parts, chosen = calls(folder).splitlines()
    assert "--array=0-1 " in parts
    assert chosen.endswith("slurm/caption.sh stage select coco run a.json --share=1")


def test_batches_without_results_are_answered_and_the_others_left_out(folder):
    asked = ["slurm/caption.sh", "batches", "asked", "--model", "m"]
    process = call(folder, *asked)
    assert process.returncode == 2
    assert "asked holds no batch-00001.jsonl" in process.stderr
    (folder / "asked").mkdir()
    for name in ("batch-00001", "batch-00002", "batch-00010", "results-00002"):
        (folder / f"asked/{name}.jsonl").touch()
    process = call(folder, *asked)
    assert process.stdout.startswith("files 1,10: job 12\n"), process.stderr
    assert "--array=1,10 " in calls(folder)
    assert "--read-results asked/results-*.jsonl" in process.stdout
    for name in ("results-00001", "results-00010"):
        (folder / f"asked/{name}.jsonl").touch()
    assert call(folder, *asked).stdout.startswith("results: ")
    assert calls(folder).count("sbatch") == 1


@pytest.mark.parametrize(
    "words", ["", "3 score", "x score run", "0 score run", "3 decide run", "stage decide run",
              "batches asked"],
)  # fmt: skip
def test_captions_script_says_what_it_takes(folder, words):
    process = call(folder, "slurm/caption.sh", *words.split())
    assert process.returncode == 2
    assert "PARTS score RUN" in process.stderr
    assert calls(folder) == ""


def test_a_pipeline_ends_with_the_table_of_the_benchmarks(folder):
    (folder / "slurm/site.env").write_text(SITE.replace("NODE=4", "NODE=3"))
    asked = ["--benchmark", "mme=MME", "--subset"]
    process = call(folder, "slurm/pipeline.sh", "run.yaml", "run.yaml", *asked)
    assert process.returncode == 0, process.stderr
    *_, last, parts, table = calls(folder).splitlines()
    assert "slurm/convert.sh" in last  # the run has no held-out shards
    export = f"{folder}/a run/export --out {folder}/a run/asked"
    assert f"slurm/evaluate.sh {export} --benchmark mme=MME --subset" in parts
    assert "--dependency=afterok:12 --kill-on-invalid-dep=yes" in parts
    assert table.endswith(f"--score {folder}/a run/asked")
    process = call(folder, "slurm/pipeline.sh", "run.yaml", "run.yaml", "--subset")
    assert process.returncode == 2
    assert "--subset: expected --benchmark NAME=PATH" in process.stderr
