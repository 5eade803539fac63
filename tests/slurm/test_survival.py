"""Trainings on a real Slurm of two nodes: ended in every way, and as good as uninterrupted."""

from __future__ import annotations

import os
import signal
import statistics

import pytest
from offline_wandb import reported_steps
from tiny import metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 40
# Two ranks add up their gradients in another order than one; measured 2e-7.
ONE_RANK_TOLERANCE = 1e-5


def start(project, name: str, step: int = 10, **changes: object) -> str:
    """Submit a run and wait until it is under way."""
    job = project.submit("pretrain.sh", project.run_file(name, **changes))
    project.wait_step(job, name, step)
    return job


def test_a_run_on_two_nodes_comes_to_its_end(whole):
    assert len(whole) == STEPS


SIGNALS = {
    "script": ("--batch", "--signal=USR1"),
    "ranks": ("--signal=TERM",),
    "ranks, own signal": ("--signal=USR1",),
}


def test_signals_save_requeue_and_go_on_with_the_next_step(project, whole):
    """To the script, as before the end of its time; or to each process of the ranks, as Slurm does
    at a preemption by default: loader workers and wandb's own process get it too. One run gets them
    all, each in another start.
    """
    name, step = "signalled", 4
    job = start(project, name, step, data={"workers": 2})
    for restarts, (to, options) in enumerate(SIGNALS.items(), start=1):
        project.cluster.command("scancel", *options, job)
        project.wait_requeued(job, name, restarts)
        state = project.state(name)
        assert state["state"] == "interrupted", to
        assert step <= state["step"] < STEPS, to
        step = state["step"] + 2
        project.wait_step(job, name, step)
        assert f"starting 2 x 1 ranks on node1 node2 after step {state['step']};" in project.log(
            job
        ), to
    project.came_to_its_end(job, name)
    assert project.cluster.field(job, "Restarts") == str(len(SIGNALS))
    assert project.losses(name) == whole
    assert reported_steps(project.run_dir(name)) == list(range(1, STEPS + 1))
    assert project.wandb_ids(name) == {(project.run_dir(name) / "wandb_id").read_text()}
    assert "wandb sync" in project.log(job)


def test_a_preempted_run_makes_room_and_goes_on(project, whole):
    job = start(project, "preempted")
    options = [
        "--partition=high",
        "--nodes=2",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
    ]
    other = project.cluster.command("sbatch", "--parsable", *options).strip()
    project.wait_requeued(job, "preempted")
    assert project.wait_end(other, hurry=False) == "COMPLETED"
    assert project.state("preempted")["state"] == "interrupted"
    project.came_to_its_end(job, "preempted")
    assert project.losses("preempted") == whole


def test_a_run_whose_time_is_up_goes_on_in_the_next_segment(project, whole_project):
    # Slurm counts whole minutes, and its signal may come one early: half a minute or so is left for
    # training.
    project.site(TIME="2", SIGNAL_LEAD="70")
    seconds = [line["step_s"] for line in metrics(whole_project.run_dir("whole"))]
    steps = max(STEPS, round(90 / statistics.median(seconds)))
    job = project.submit("pretrain.sh", project.run_file("timed", train={"steps": steps}))
    project.wait_requeued(job, "timed")
    assert "asked to stop" in project.log(job)
    assert project.state("timed")["state"] == "interrupted"
    # A machine under load would need many such segments; the second one may have more time.
    project.cluster.command("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    project.came_to_its_end(job, "timed")
    assert len(project.losses("timed")) == steps


def test_a_run_goes_on_after_one_of_its_ranks_was_killed(project, whole):
    job = start(project, "killed")
    os.kill(project.ranks("killed")[-1], signal.SIGKILL)
    project.wait_requeued(job, "killed")
    project.came_to_its_end(job, "killed")
    assert project.losses("killed") == whole
    assert len(project.wandb_ids("killed")) == 1
    assert reported_steps(project.run_dir("killed")) == list(range(1, STEPS + 1))


def test_a_run_that_lost_a_node_goes_on_with_the_other(project, whole):
    project.site(NODES="1-2")
    job = start(project, "halved")
    project.cluster.kill_node("node2")
    try:
        project.wait_requeued(job, "halved")
        project.came_to_its_end(job, "halved")
        assert project.cluster.field(job, "NodeList") == "node1"
        assert "starting 1 x 1 ranks on node1 after step" in project.log(job)
        losses = project.losses("halved")
        assert losses == pytest.approx(whole, rel=ONE_RANK_TOLERANCE)
        worst = max(abs(a - b) / b for a, b in zip(losses, whole, strict=True))
        print(f"one rank instead of two: losses differ by {worst:.1e} at most")
    finally:
        project.cluster.start_node("node2")
        project.cluster.wait_idle()


def test_restarts_without_a_new_checkpoint_come_to_an_end(project):
    # The rank dies in each start before the first checkpoint, as with a fault of its node.
    run_file = project.run_file("hopeless", checkpoint={"every": 1000})
    job = project.submit("pretrain.sh", run_file)
    for restarts in (0, 1):  # SITE_MAX_RESTARTS=1: one restart, and no more
        project.hurry(job)
        project.wait_step(job, "hopeless", 1)
        os.kill(project.ranks("hopeless")[0], signal.SIGKILL)
        if restarts == 0:
            project.wait_requeued(job, "hopeless")
            (project.run_dir("hopeless") / "metrics.jsonl").unlink()
    assert project.wait_end(job, "hopeless") == "FAILED", project.explain(job, "hopeless")
    assert project.cluster.field(job, "Restarts") == "1"
    assert "1 restarts in a row brought no checkpoint after step 0" in project.log(job)


def test_a_stop_file_and_scancel_end_a_run_for_good_and_a_new_job_goes_on(project, whole):
    job = start(project, "stopped", 4, data={"workers": 2})
    (project.run_dir("stopped") / "STOP").touch()
    assert project.wait_end(job, "stopped") == "FAILED"
    assert project.cluster.field(job, "ExitCode") == "3:0"
    assert project.state("stopped")["state"] == "interrupted"
    stopped = project.state("stopped")["step"]
    job = project.submit("pretrain.sh", project.folder / "stopped.yaml")
    project.wait_step(job, "stopped", stopped + 2)
    project.cluster.command("scancel", job)  # SIGTERM to all processes, SIGKILL after KillWait
    assert project.wait_end(job, "stopped") == "CANCELLED"
    project.cluster.wait_idle()
    assert project.cluster.field(job, "JobState") == "CANCELLED"
    assert project.cluster.field(job, "Restarts") == "0"
    state = project.state("stopped")
    assert (state["state"], state["reason"], state["restart"]) == ("interrupted", "SIGTERM", True)
    assert stopped + 2 <= state["step"] < STEPS
    job = project.submit("pretrain.sh", project.folder / "stopped.yaml")
    project.came_to_its_end(job, "stopped")
    assert f"starting 2 x 1 ranks on node1 node2 after step {state['step']};" in project.log(job)
    assert project.losses("stopped") == whole
    assert reported_steps(project.run_dir("stopped")) == list(range(1, STEPS + 1))
    assert len(project.wandb_ids("stopped")) == 1


def test_a_hopeless_run_is_not_started_again(project):
    validation = project.folder / "no_shards"
    job = project.submit(
        "pretrain.sh", project.run_file("faulty", data={"validation": str(validation)})
    )
    assert project.wait_end(job, "faulty") == "FAILED"
    assert project.cluster.field(job, "Restarts") == "0"
    assert project.cluster.field(job, "ExitCode") == "2:0"
    assert "starting again would not help" in project.log(job)
    assert str(validation) in project.log(job)


def test_a_bad_node_is_left_out(project):
    """node2's scratch folder cannot be written, as its own mount namespace lets us arrange."""
    scratch = project.folder / "scratch"
    scratch.mkdir()
    pid = str(project.cluster.processes["node2"].pid)
    project.cluster.command(
        "nsenter",
        "--target",
        pid,
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "ro",
        "none",
        str(scratch),
    )
    project.site(NODES="1-2", SCRATCH=str(scratch))
    job = project.submit("pretrain.sh", project.run_file("picky", train={"steps": 4}))
    project.came_to_its_end(job, "picky")
    assert "node node2 is bad" in project.log(job)
    assert "starting 1 x 1 ranks on node1" in project.log(job)
    project.site(SCRATCH=str(scratch))
    job = project.submit("pretrain.sh", project.run_file("choosy", train={"steps": 4}))
    project.wait_requeued(job, "choosy")
    project.wait_field(job, "ExcNodeList", "node2")
    project.cluster.command("scancel", job)
    project.cluster.command("nsenter", "--target", pid, "--mount", "umount", str(scratch))


def test_plain_sbatch_asks_again_with_the_values_of_the_site(project):
    project.site(RANKS_PER_NODE="2")
    run_file = project.run_file("typed", train={"steps": 4})
    first = project.cluster.command(
        "sbatch", "--parsable", "slurm/pretrain.sh", str(run_file), cwd=project.folder
    ).strip()
    assert project.wait_end(first) == "COMPLETED"
    (log,) = project.folder.glob(f"*-{first}.out")
    assert "is not what slurm/site.env asks for: 1 nodes instead of 2" in log.read_text()
    second = log.read_text().split("job ")[-1].split()[0]
    project.came_to_its_end(second, "typed")
    assert "2 x 2 ranks" in project.log(second)
