"""tools/evaluate.py asks a judge over real HTTP: here a tiny export, whose grades are noise."""

from __future__ import annotations

import sys

import pytest
from answered_mmvet import answered
from tiny import ROOT, run_command

pytest.importorskip("aiohttp")


def test_a_served_export_can_be_the_judge_and_the_table_says_so(serving, tmp_path):
    answered(tmp_path / "out")
    tool = [sys.executable, str(ROOT / "tools/evaluate.py"), "--score", str(tmp_path / "out")]
    with serving(key="sk-very-secret") as endpoint:
        judge = ["--judge", endpoint.url, "--judge-model", "tiny", "--key-variable", "A_KEY"]
        before = run_command(tool)
        judged = run_command([*tool, *judge], A_KEY="sk-very-secret")
        asked = len(endpoint.added)
        again = run_command([*tool, *judge], A_KEY="sk-very-secret")
        assert len(endpoint.added) == asked == 3
        refused = run_command([*tool, *judge], A_KEY="wrong")
    assert "MM-Vet (mmvet): 3 questions, not scored: a judge must grade" in before.stdout
    assert judged.returncode == 0, judged.stderr
    assert "graded by tiny (answered as tiny), prompt grade_v1 " in judged.stdout
    assert again.stdout == judged.stdout
    assert refused.stdout == judged.stdout  # nothing was left to ask
    for process in (judged, again, refused):
        assert "sk-very-secret" not in process.stdout + process.stderr
