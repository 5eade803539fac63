"""What comes at a bad moment on a real Slurm: signals while the nodes are looked at, a second job
for the same run.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# A Python for jobs: a program whose name lies in the folder says that it has begun, and waits until
# the name is gone.
HELD_PYTHON = """#!/bin/bash
name=${{1##*/}}
if [ -n "$SLURM_JOB_ID" ] && [ -e {folder}/$name ]; then
    touch {folder}/$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}.$name.$SLURMD_NODENAME
    while [ -e {folder}/$name ]; do sleep 0.1; done
fi
exec {python} "$@"
"""


class Held:
    """Programs of jobs that stop at their beginning until they are let go."""

    def __init__(self, project) -> None:
        self.project = project
        self.folder = project.folder / "held"
        self.folder.mkdir()
        self.python = project.folder / "held_python"
        self.python.write_text(HELD_PYTHON.format(folder=self.folder, python=sys.executable))
        self.python.chmod(0o755)

    def hold(self, program: str) -> None:
        (self.folder / program).touch()

    def let_go(self, program: str) -> None:
        (self.folder / program).unlink()

    def wait(self, job: str, program: str, *nodes: str, start: int = 0) -> None:
        """Until the program has begun on these nodes in this start of the job."""
        self.project.wait_files(
            job, *(self.folder / f"{job}.{start}.{program}.{node}" for node in nodes)
        )


def exit_code(project, job: str) -> str:
    return project.cluster.field(job, "ExitCode")


def test_signals_at_the_look_at_the_nodes_and_duplicates_leave_a_run_as_if_undisturbed(
    project, whole
):
    """Nothing is judged by a node that was interrupted; who holds a run is asked before its folder
    is touched.
    """
    held = Held(project)
    project.site(PYTHON=str(held.python), MAX_RESTARTS="9", EXCLUSIVE="no")
    run_file, folder = project.run_file("disturbed"), project.run_dir("disturbed")
    command = project.cluster.command

    # Cancelled while its nodes are looked at, a job is over.
    held.hold("check_node.py")
    folder.mkdir(parents=True)
    (folder / "STOP").touch()
    os.utime(folder / "STOP", (0, 0))
    job = project.submit("pretrain.sh", run_file)
    held.wait(job, "check_node.py", "node1", "node2")
    assert "removed a file STOP that was left over" in project.log(job)
    command("scancel", job)
    assert project.wait_end(job) == "CANCELLED", project.explain(job)
    assert project.cluster.field(job, "Restarts") == "0"

    # Put back by Slurm, signalled as before the end of its time, or its step ended as by a
    # preemption: it comes back.
    job = project.submit("pretrain.sh", run_file)
    ways = (
        ("scontrol", "requeue"),
        ("scancel", "--batch", "--signal=USR1"),
        ("scancel", "--signal=TERM"),
    )
    for restarts, way in enumerate(ways):
        held.wait(job, "check_node.py", "node1", "node2", start=restarts)
        command(*way, job)
        project.wait_requeued(job, times=restarts + 1)
    held.wait(job, "check_node.py", "node1", "node2", start=len(ways))
    assert not (folder / "bad_nodes").exists()
    assert "is bad" not in project.log(job)
    assert "Slurm refused" not in project.log(job)
    held.let_go("check_node.py")

    # While it trains, duplicates come; its ranks stand still, so that it cannot end before they do.
    project.wait_step(job, "disturbed", 4)
    ranks = project.ranks("disturbed")
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    before = {
        name: (folder / name).read_bytes() for name in ("state.json", "restarts", "slurm_job")
    }
    held.hold("run_facts.py")
    ended, cancelled, requeued = (project.submit("pretrain.sh", run_file) for _ in range(3))
    for duplicate in (ended, cancelled, requeued):
        held.wait(duplicate, "run_facts.py", "node1")
    command("scancel", cancelled)
    command("scontrol", "requeue", requeued)
    project.wait_requeued(requeued)
    held.let_go("run_facts.py")
    for duplicate in (ended, requeued):
        assert project.wait_end(duplicate) == "FAILED", project.explain(duplicate)
        assert exit_code(project, duplicate) == "2:0"
        assert f"{folder} is held by job {job} (RUNNING, None)" in project.log(duplicate)
    assert project.wait_end(cancelled) == "CANCELLED"
    assert not (folder / "STOP").exists()
    assert {name: (folder / name).read_bytes() for name in before} == before
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)

    project.came_to_its_end(job, "disturbed")
    assert project.losses("disturbed") == whole


def test_a_stop_file_that_is_put_there_while_a_new_job_waits_ends_it(project):
    run_file, folder = project.run_file("waiting"), project.run_dir("waiting")
    folder.mkdir(parents=True)
    job = project.submit("pretrain.sh", run_file, "--", "--hold")
    (folder / "STOP").touch()
    project.cluster.command("scontrol", "release", job)
    assert project.wait_end(job) == "FAILED", project.explain(job)
    assert exit_code(project, job) == "3:0"
    assert "the file STOP was put into" in project.log(job)
