"""Agreement of scorers: published and hand-worked numbers, and what the report says of a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from caption_runs import captioned

from pargo_ds.captioning.decide.decide import Settings, decide
from pargo_ds.captioning.report.agreement import Judged, compare, kappa, rank_correlation
from pargo_ds.captioning.report.report import report
from pargo_ds.captioning.run_files import RunFolder, read_lines, write_lines, write_object
from pargo_ds.captioning.score.scores import texts_hash
from pargo_ds.captioning.text_rules import TextRules


def votes(*numbers: int) -> np.ndarray:
    """(both, first only, second only, none) -> the two series of votes."""
    both, first, second, none = numbers
    one = [True] * (both + first) + [False] * (second + none)
    other = [True] * both + [False] * first + [True] * second + [False] * none
    return np.array([one, other])


def test_rank_correlation_is_that_of_a_worked_example() -> None:
    """The ten pairs of IQ and hours of television that textbooks work out: rho = -29/165."""
    iq = np.array([86, 97, 99, 100, 101, 103, 106, 110, 112, 113.0])
    hours = np.array([2, 20, 28, 27, 50, 29, 7, 17, 6, 12.0])
    assert rank_correlation(iq, hours) == pytest.approx(-29 / 165)
    assert rank_correlation(iq, np.exp(iq)) == pytest.approx(1)
    assert rank_correlation(iq, -iq) == pytest.approx(-1)


def test_equal_values_share_their_rank() -> None:
    """By hand: ranks 1.5, 1.5, 3, 4 and 1, 2, 3.5, 3.5: covariance 4, sums of squares 4.5 each."""
    found = rank_correlation(np.array([0, 0, 5, 9.0]), np.array([1, 2, 3, 3.0]))
    assert found == pytest.approx(4 / 4.5)
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None


def test_kappa_is_that_of_worked_examples() -> None:
    """Two readers of 50 proposals (20, 5, 10, 15): 0.4; of 100 (45, 15, 25, 15): 0.1304."""
    assert kappa(*votes(20, 5, 10, 15)) == pytest.approx(0.4)
    assert kappa(*votes(45, 15, 25, 15)) == pytest.approx(0.1304, abs=5e-5)
    assert kappa(*votes(0, 5, 5, 90)) == pytest.approx((0.90 - 0.905) / 0.095)
    assert kappa(*votes(0, 0, 0, 9)) is None


def test_only_pieces_that_both_have_scored_are_compared() -> None:
    one = Judged(np.array([1, 2, math.nan, 4.0]), np.array([True, False, False, False]))
    other = Judged(np.array([3, 2, 5, 1.0]), np.array([False, False, True, False]))
    found = compare(one, other)
    assert found["pieces"] == 3
    assert found["rank_correlation"] == pytest.approx(-1)
    assert found["equal_votes"] == pytest.approx(2 / 3)
    assert found["against"] == [1, 0]
    nobody = Judged(np.full(4, math.nan), np.zeros(4, bool))
    assert compare(one, nobody)["rank_correlation"] is None


def scored(run: RunFolder, name: str, wholes: list[float], parts: list[float]) -> None:
    """Write a scorer's files by hand: a score for each caption and one for its part."""
    write_object(run.scores / name / "about.json", {})
    rows = []
    for row, whole, part in zip(read_lines(run.captions), wholes, parts, strict=True):
        rows.append({"id": row["id"], "texts": texts_hash(row),
                     "global": [0.0, whole, 0.0, 0.0], "parts": [[0.0, part, 0.0, 0.0]]})  # fmt: skip
    write_lines(run.scores / name / "captions-00000.jsonl", rows)


def test_the_report_says_how_far_each_pair_agrees(tmp_path: Path) -> None:
    """Of 40 pieces each scorer votes against the lowest two: once the same ones, once others."""
    run = captioned(tmp_path)
    for name in ("a", "b", "old"):
        (run.scores / name).mkdir(parents=True)
    up = [float(n) for n in range(40)]
    scored(run, "a", up, up)
    scored(run, "b", up, up[::-1])
    scored(run, "old", up, up)
    old = list(read_lines(run.scores / "old" / "captions-00000.jsonl"))
    write_lines(run.scores / "old" / "captions-00000.jsonl", [{**old[0], "texts": ""}, *old[1:]])
    write_lines(run.planted, [])
    decide(run, Settings(text=TextRules(least_words=5)), ["a"])
    agreement = report(run)["agreement"]
    assert agreement["left_out"] == ["old"]
    wholes, parts = agreement["pairs"]
    assert [wholes["scorers"], wholes["kind"], parts["kind"]] == [["a", "b"], "global", "part"]
    assert wholes["rank_correlation"] == pytest.approx(1)
    assert wholes["kappa"] == pytest.approx(1)
    assert wholes["against"] == [2, 2]
    assert parts["rank_correlation"] == pytest.approx(-1)
    assert parts["equal_votes"] == pytest.approx(36 / 40)
    assert parts["both_against"] == 0
    page = (run.path / "report.html").read_text()
    assert "Agreement of the scorers (left out, because they scored other captions: old)" in page
    assert "-1.000" in page
    assert "| a and b | part | 40 | -1.000 | 90.0% | -0.053 | 2, 2; 0 |" in (
        (run.path / "README.md").read_text()
    )
