"""tools/evaluate.py on benchmarks: the whole way in processes of its own, with a tiny export."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import official_layouts as layouts
import pytest
from tiny import ROOT, run_command
from tiny_export import write_export

from pargo_ds.evaluation.benchmarks import BENCHMARKS

TOOL = [sys.executable, str(ROOT / "tools/evaluate.py")]


@pytest.fixture(scope="module")
def export(tokenizer_folder, tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("export"), tokenizer_folder)


def tree(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "scores.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_mme_and_pope_are_asked_killed_resumed_and_scored(export, tmp_path):
    """kill -9 in the middle, then one and two ranks go on: the same bytes as in one go."""
    asked = [
        *TOOL, str(export), "--subset", "--batch", "2",
        "--benchmark", f"mme={layouts.mme(tmp_path / 'mme', pairs=6)}",
        "--benchmark", f"pope:llava={layouts.pope(tmp_path / 'pope')}",
    ]  # fmt: skip
    whole = run_command([*asked, "--out", str(tmp_path / "whole")])
    assert whole.returncode == 0, whole.stderr
    assert "MME (mme), prompt official - PART OF IT" in whole.stdout
    assert "POPE (pope), prompt llava - PART OF IT" in whole.stdout

    out = tmp_path / "killed"
    process = subprocess.Popen([*asked, "--out", str(out)], env=_environment(), cwd=ROOT)
    while not list(out.glob("mme/units/*.jsonl")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    scored = run_command([*TOOL, "--score", str(out)])
    assert scored.returncode == 3, scored.stderr
    assert "units have no answers yet" in scored.stderr
    for rank in ("1", "0"):
        ranks = ["--rank", rank, "--ranks", "2", "--out", str(out)]
        process = run_command([*asked, *ranks])
        assert process.returncode == 0, process.stderr
        if rank == "1":
            assert "rank 1 of 2 has asked its share" in process.stdout
    assert tree(out) == tree(tmp_path / "whole")

    scored = run_command(
        [
            *TOOL,
            "--score",
            str(out),
            "--against",
            str(tmp_path / "whole"),
            "--json",
            str(tmp_path / "s.json"),
        ]
    )
    assert scored.returncode == 0, scored.stderr
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["mme"]["difference"]["total"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert scores["mme"]["asked"] == 24

    to = tmp_path / "page"
    paged = run_command([*TOOL, "--page", f"a={out}", f"b={tmp_path / 'whole'}", "--to", str(to)])
    assert paged.returncode == 0, paged.stderr
    assert paged.stdout.startswith("| export | MME, total (points) | POPE, mean F1 (%) |")
    assert {path.name for path in to.iterdir()} == {"results.html", "results.json", "results.md"}


@pytest.mark.slow
def test_other_weights_and_blind_runs_need_a_folder_of_their_own(export, tmp_path):
    asked = [*TOOL, str(export), "--subset", "--out", str(tmp_path / "out")]
    asked += ["--benchmark", f"gqa={layouts.gqa(tmp_path / 'gqa')}"]
    assert run_command(asked).returncode == 0
    blind = run_command([*asked, "--images", "shuffled"])
    assert blind.returncode == 2
    assert "holds answers of another kind: settings" in blind.stderr
    blind = run_command([*asked, "--images", "shuffled", "--out", str(tmp_path / "blind")])
    assert blind.returncode == 0, blind.stderr
    assert "GQA testdev balanced (gqa), prompt llava, images shuffled" in blind.stdout


def test_the_list_says_what_each_needs_without_torch():
    script = (
        "import sys; sys.path.insert(0, 'tools'); import evaluate\n"
        "evaluate.main(['--list']); assert 'torch' not in sys.modules"
    )
    process = run_command([sys.executable, "-c", script])
    assert process.returncode == 0, process.stderr
    for name, benchmark in BENCHMARKS.items():
        assert f"{name}: {benchmark.title}" in process.stdout
        assert benchmark.licence in process.stdout


def test_scoring_needs_no_torch(tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'tools'); import evaluate\n"
        "status = evaluate.main(['--score', sys.argv[1]]); assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    process = run_command([sys.executable, "-c", script, str(tmp_path)])
    assert process.returncode == 2, process.stderr
    assert "holds no answers" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give EXPORT SHARDS, EXPORT --benchmark"),
        (["e", "--benchmark", "mme=x"], "--benchmark needs --out"),
        (["--benchmark", "mme=x", "--out", "o"], "EXPORT is missing"),
        (["e", "s", "--against", "x"], "--against goes with --score"),
        (["--page", "x"], "--page OUT ... and --to FOLDER go together"),
        (["--page", "x", "x", "--to", "y"], "x stands twice; name the exports apart: NAME=OUT"),
        (["e", "--benchmark", "mme", "--out", "o"], "expected NAME=PATH"),
        (["e", "--benchmark", "mme:best=x", "--out", "o"], "mme has no prompt 'best': there are"),
        (["e", "--benchmark", "nme=x", "--out", "o"], "no benchmark is named 'nme'"),
    ],
)
def test_faults_of_the_command_line_are_told(arguments, said):
    process = run_command([*TOOL, *arguments])
    assert process.returncode == 2
    assert said in process.stderr


def _environment() -> dict[str, str]:
    import os

    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": str(ROOT), **on_cpu}
