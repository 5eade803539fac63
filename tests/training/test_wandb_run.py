"""A real offline wandb whose own process is ended: each step is reported once, in one run."""

from __future__ import annotations

import json
import signal
import socket
import time

import psutil
import pytest
import wandb
from offline_wandb import reported_steps
from tiny import merged

from pargo_ds.config import RunConfig, parse_config
from pargo_ds.training.reporting import drop_lines_after
from pargo_ds.training.wandb_run import WandbRun, mode_of

TOTAL = 12


@pytest.fixture
def run(tiny_run, tmp_path) -> RunConfig:
    run = parse_config(
        merged(tiny_run, {"output": str(tmp_path), "reporting": {"wandb": "offline"}})
    )
    run.run_dir.mkdir()
    return run


def start(run: RunConfig, first_step: int) -> WandbRun:
    metrics = run.run_dir / "metrics.jsonl"
    metrics.touch()
    drop_lines_after(metrics, first_step)
    if first_step > 0:
        time.sleep(
            1
        )  # wandb names its folders by the second, and no real start is as quick as this one
    return WandbRun(run, metrics, first_step, TOTAL)


def report(reporter: WandbRun, *steps: int) -> None:
    for step in steps:
        figures = {"loss": 1 / step, "grad_norm": None}
        with reporter.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        reporter.log(step, figures)


def end_its_process() -> None:
    """As Slurm does with a signal to all processes of a job."""
    own = [
        child for child in psutil.Process().children(recursive=True) if "wandb-core" in child.name()
    ]
    assert own
    for child in own:
        child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in own):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(
        0.5
    )  # wandb's thread finds the connection closed; figures before that are lost without a word


def reported(run: RunConfig) -> list[int]:
    """wandb's own process writes the end of a segment after `finish` has returned, but before it
    ends.
    """
    wandb.teardown()
    return reported_steps(run.run_dir)


def segments(run: RunConfig) -> list[str]:
    return sorted(path.name for path in (run.run_dir / "wandb").glob("*offline-run-*"))


def test_each_start_continues_the_same_wandb_run(run):
    for first, steps in (
        (0, (1, 2, 3)),
        (2, (3, 4)),
    ):  # the second start has a checkpoint after step 2
        reporter = start(run, first)
        report(reporter, *steps)
        reporter.close()
        assert reporter.id == (run.run_dir / "wandb_id").read_text()
    assert reported(run) == [1, 2, 3, 4]
    assert len({name.rpartition("-")[2] for name in segments(run)}) == 1


def test_a_wandb_that_was_ended_is_started_again_and_has_every_step_once(run):
    reporter = start(run, 0)
    report(reporter, 1, 2, 3)
    end_its_process()
    report(reporter, 4, 5, 6)
    reporter.close()
    assert reported(run) == [1, 2, 3, 4, 5, 6]
    assert sum(name.startswith("cut-off-") for name in segments(run)) == 1


def test_steps_that_are_trained_again_are_reported_once(run):
    """A rank died while the checkpoint after step 4 was written, and again before the step where it
    died first.
    """
    for first, steps in ((0, (1, 2, 3, 4)), (2, (3,)), (2, (3, 4, 5, 6))):
        reporter = start(run, first)
        report(reporter, *steps)
        reporter.close()
    assert reported(run) == [1, 2, 3, 4, 5, 6]


def test_what_is_missing_after_a_stop_is_made_up_for_by_the_next_start(run):
    reporter = start(run, 0)
    report(reporter, 1, 2, 3)
    end_its_process()
    report(reporter, 4)
    reporter.close()
    assert reported(run) == []  # a stopping process has no time for a new wandb
    reporter = start(run, 4)
    report(reporter, 5, 6)
    reporter.close()
    assert reported(run) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("after", [TOTAL, TOTAL - 1])
def test_after_the_last_step_wandb_is_started_again_at_once(run, after):
    reporter = start(run, 0)
    report(reporter, *range(1, after + 1))
    end_its_process()
    report(reporter, *range(after + 1, TOTAL + 1))
    reporter.close()
    assert reported(run) == list(range(1, TOTAL + 1))


def test_a_wandb_that_keeps_ending_does_not_end_the_training(run, caplog):
    reporter = start(run, 0)
    for step in range(1, TOTAL, 2):
        report(reporter, step)
        if reporter.wandb is not None:
            end_its_process()
        report(reporter, step + 1)
    reporter.close()
    assert reporter.restarts == 0
    assert reporter.metrics.read_text().count("\n") == TOTAL


def test_a_run_that_an_earlier_release_began_is_not_reported_twice(run):
    reporter = start(run, 0)
    report(reporter, 1, 2)
    reporter.close()
    (run.run_dir / "wandb_state.json").unlink()
    reporter = start(run, 2)
    report(reporter, 3)
    reporter.close()
    assert reported(run) == [1, 2, 3]


@pytest.fixture
def silent_server(monkeypatch):
    """The address of a server that takes connections and never answers; wandb's environment speaks
    of it alone.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("NETRC", "/dev/null")
        yield


@pytest.mark.parametrize("key", ["0123456789" * 4, "malformed"])
def test_a_key_that_leads_nowhere_ends_no_run_and_loses_no_figure(
    run, silent_server, monkeypatch, caplog, key
):
    monkeypatch.setenv("WANDB_API_KEY", key)
    online = run.reporting.model_copy(update={"wandb": "auto", "wandb_timeout_s": 0.5})
    run = run.model_copy(update={"reporting": online})
    assert mode_of(run) == "online"
    reporter = start(run, 0)
    report(reporter, 1, 2)
    reporter.close()
    assert reported(run) == [1, 2]
    assert "wandb cannot be online" in caplog.text
    assert key not in caplog.text


@pytest.mark.parametrize("in_file", ["auto", "online", "offline", "disabled"])
@pytest.mark.parametrize(
    ("variable", "value", "mode"),
    [
        ("WANDB_MODE", "offline", "offline"),
        ("WANDB_MODE", "dryrun", "offline"),
        ("WANDB_MODE", "disabled", "disabled"),
        ("WANDB_MODE", "online", "online"),
        ("WANDB_MODE", "of", "disabled"),
        ("WANDB_MODE", " offline ", "offline"),
        ("WANDB_DISABLED", "true", "disabled"),
        ("WANDB_DISABLED", "Y ", "disabled"),
    ],
)
def test_the_environment_goes_before_the_run_file(run, monkeypatch, in_file, variable, value, mode):
    monkeypatch.setenv(variable, value)
    run = run.model_copy(update={"reporting": run.reporting.model_copy(update={"wandb": in_file})})
    assert mode_of(run) == mode


def test_a_key_for_another_server_is_found_where_that_server_is_named(run, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = run.model_copy(update={"reporting": run.reporting.model_copy(update={"wandb": "auto"})})
    assert mode_of(run) == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8443/")
    assert mode_of(run) == "online"


@pytest.mark.parametrize(
    ("variable", "value"), [("WANDB_BASE_URL", "http://[x"), ("NETRC", "/"), ("NETRC", "/none")]
)
def test_a_variable_that_names_nothing_means_no_key(run, monkeypatch, variable, value):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/none")
    monkeypatch.setenv(variable, value)
    assert (
        mode_of(
            run.model_copy(update={"reporting": run.reporting.model_copy(update={"wandb": "auto"})})
        )
        == "offline"
    )


def test_a_note_that_cannot_be_written_ends_no_run(run, caplog):
    reporter = start(run, 0)
    report(reporter, 1)
    (run.run_dir / ".wandb_state.json.aside").mkdir()  # as a full disk: the note cannot be written
    reporter.close()
    assert "wandb stopped" in caplog.text


def test_an_id_that_was_not_written_is_chosen_anew(run):
    (run.run_dir / "wandb_id").write_text("")
    reporter = start(run, 0)
    reporter.close()
    assert reporter.id
    assert reporter.id == (run.run_dir / "wandb_id").read_text()


def test_a_disabled_wandb_writes_nothing(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    reporter = start(run, 0)
    report(reporter, 1)
    reporter.close()
    assert sorted(path.name for path in run.run_dir.iterdir()) == ["metrics.jsonl"]


def test_damaged_notes_of_wandb_end_no_run(run):
    (run.run_dir / "wandb_state.json").write_text("")
    reporter = start(run, 0)
    report(reporter, 1)
    reporter.close()
    assert reporter.metrics.read_text().count("\n") == 1
