"""The report of the first GPU: pieces are done once, resumed after a kill, refused without a GPU."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from tiny import ROOT, run_command

from pargo_ds.speed import gpu_report
from pargo_ds.speed.gpu_pieces import MINUTES, Machine, Piece, chosen, pieces

CPU = Machine("cpu", 1, None, "a CPU")
TOOL = [sys.executable, "tools/gpu_report.py"]


def python(name, code, **more):
    return Piece(name, "?", ((sys.executable, "-c", code),), **more)


def test_what_is_of_most_worth_comes_first_and_each_piece_needs_one_that_comes_before(tmp_path):
    for machine in (CPU, Machine("cuda", 8, "h100", "")):
        every = pieces(machine, tmp_path)
        names = [piece.name for piece in every]
        assert names[0] == "golden"
        assert len(set(names)) == len(names)
        for place, piece in enumerate(every):
            assert not piece.needs or piece.needs in names[:place]
    with pytest.raises(ValueError, match="no piece is called nonsense; --list"):
        chosen(every, ["nonsense", "golden"])
    assert MINUTES < 10


def test_a_piece_that_fails_has_a_result_and_one_that_is_out_of_time_has_none(tmp_path):
    assert gpu_report.run_piece(python("good", "print('seen')"), tmp_path, CPU) == "done"
    assert gpu_report.run_piece(python("bad", "raise SystemExit(3)"), tmp_path, CPU) == "failed"
    late = python("late", "import threading; threading.Event().wait()")
    assert gpu_report.run_piece(late, tmp_path, CPU, minutes=0.0) == "out of time"
    every = [python("good", ""), python("bad", ""), late]
    found = gpu_report.results(tmp_path, every)
    assert [(result["name"], result["status"]) for result in found] == [("good", 0), ("bad", 3)]
    assert found[0]["output"] == ["seen"]
    assert gpu_report.missing(tmp_path, python("next", "", needs="good")) == ""
    assert gpu_report.missing(tmp_path, python("next", "", needs="bad")) == "bad"
    page = gpu_report.write_report(tmp_path, every).read_text()
    assert "Not run yet: late." in page
    assert "| bad | ? | failed, status 3:" in (tmp_path / "report.md").read_text()


def test_a_piece_that_is_run_again_has_figures_of_this_run_only(tmp_path):
    old = tmp_path / "steps" / "shipped"
    old.mkdir(parents=True)
    (old / "metrics.jsonl").write_text('{"step": 9, "loss": 1.0, "step_s": 1.0}\n')
    piece = python("refused", "raise SystemExit(2)", run="steps/shipped")
    assert gpu_report.run_piece(piece, tmp_path, CPU) == "failed"
    assert json.loads((tmp_path / "refused.json").read_text())["figures"] == {}


def test_the_end_of_a_piece_ends_workers_in_sessions_of_their_own(tmp_path):
    sleeper = "import threading; threading.Event().wait()"
    launcher = (  # as torchrun does
        "import subprocess, sys\n"
        f"worker = subprocess.Popen([sys.executable, '-c', {sleeper!r}], start_new_session=True)\n"
        "print(worker.pid, flush=True)\nworker.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(process.stdout.readline()))
    gpu_report.kill_with_children(process)
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_the_pieces_that_run_tests_find_all_of_them_and_none_twice(tmp_path):
    def collected(arguments):
        found = subprocess.run(
            [*arguments, "--collect-only"], capture_output=True, text=True, cwd=ROOT
        )
        assert found.returncode == 0, found.stdout
        return [line for line in found.stdout.splitlines() if "::" in line]

    by_piece = []
    for piece in pieces(CPU, tmp_path):
        if "pytest" in piece.commands[0]:
            arguments = [word for word in piece.commands[0] if word != "-s"]
            by_piece += collected(arguments)
    every = collected([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"])
    assert sorted(by_piece) == sorted(every)


def test_figures_of_a_run_are_medians_after_its_first_steps(tmp_path):
    rows = [
        {"step": step, "step_s": 9.0 if step < 6 else float(step), "loss": 1 / step, "mfu": None}
        for step in range(1, 9)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = gpu_report.run_figures(tmp_path)
    assert (found["step_s"], found["mfu"], found["first_loss"]) == (7.0, None, 1.0)
    assert gpu_report.run_figures(tmp_path / "nowhere") == {}


def test_without_a_gpu_the_tool_says_so_in_one_sentence(tmp_path):
    process = run_command([*TOOL, "--out", str(tmp_path / "report")])
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "no GPU that torch can use" in process.stderr
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_after_a_kill_between_two_pieces_the_same_command_goes_on_with_the_second(tmp_path):
    """The two cheapest pieces: tests/gpu, which is skipped here, and attention at a tiny size."""
    names = ["golden", "attention_288_576"]
    command = [*TOOL, "--device", "cpu", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--only", *names], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("golden: done"):
            process.send_signal(signal.SIGKILL)
    process.wait()
    first = (tmp_path / "golden.json").read_bytes()
    assert not (tmp_path / "attention_288_576.json").exists()
    listed = run_command([*command, "--list"]).stdout.splitlines()
    assert "has a result" in next(line for line in listed if line.startswith("golden"))
    again = run_command([*command, "--only", names[1]])
    assert "attention_288_576: done" in again.stdout, again.stdout + again.stderr
    assert (tmp_path / "golden.json").read_bytes() == first
    assert json.loads((tmp_path / "attention_288_576.json").read_text())["status"] == 0
    assert (tmp_path / "attention_288_576_figures.json").is_file()
    assert "attention_288_576" in (tmp_path / "report.html").read_text()
