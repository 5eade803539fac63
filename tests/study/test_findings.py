"""From results of cells to the report, with results whose truth was planted."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_study import write_study

from pargo_ds.errors import UserError
from pargo_ds.study.cell_result import take_results
from pargo_ds.study.cells import cells_of
from pargo_ds.study.comparisons import accuracy_figures, differences
from pargo_ds.study.findings import find
from pargo_ds.study.published import beside_published, claim_of
from pargo_ds.study.report import claims, summary, write_report
from pargo_ds.study.results import AskedQuestion, gather, groups_of
from pargo_ds.study.run_cell import finished
from pargo_ds.study.study_file import load_study

QUESTIONS = [
    AskedQuestion(
        id=f"q{n}", scene=f"scenes/{1000 + n // 14:05d}", type=("colour", "count")[n % 2],
        size=("small", "scene")[n % 2], count=2 + n // 4 % 2, place="here" if n % 4 == 0 else "",
    )
    for n in range(160)
]  # fmt: skip


def answers(chance: float, seed: int) -> list[float]:
    return (np.random.default_rng(seed).random(len(QUESTIONS)) < chance).astype(float).tolist()


def test_seeds_that_all_variants_have_are_compared_and_the_rest_is_named():
    one = (QUESTIONS, answers(0.5, 0))
    results, said = gather({("a", 0): one, ("a", 1): one, ("b", 0): one}, ["a", "b", "c"])
    assert results.variants == ("a", "b")
    assert results.seeds == (0,)
    assert results.right.shape == (2, 1, 160)
    assert said == ["c: no finished cell", "a: seeds 1 have no partners yet"]
    with pytest.raises(UserError, match="nothing to compare"):
        gather({}, ["a"])
    with pytest.raises(UserError, match="no seed is finished for all"):
        gather({("a", 0): one, ("b", 1): one}, ["a", "b"])
    with pytest.raises(UserError, match="b, seed 0 was asked other questions"):
        gather({("a", 0): one, ("b", 0): (QUESTIONS[:-1], one[1][:-1])}, ["a", "b"])


def test_groups_are_types_sizes_counts_and_places():
    groups = groups_of(QUESTIONS)
    assert list(groups) == [
        "all", "size: scene", "size: small", "type: colour", "type: count", "both: colour, small",
        "both: count, scene", "count: 2 small objects", "count: 3 small objects", "place: here",
    ]  # fmt: skip
    assert groups["all"].all()
    assert (groups["size: small"] == groups["type: colour"]).all()
    assert groups["place: here"].sum() == 40


def test_accuracy_and_differences_are_the_plain_ones():
    cells = {(name, seed): (QUESTIONS, answers(0.3 + 0.3 * (name == "b"), 10 * seed + len(name)))
             for name in ("a", "b", "cc") for seed in range(3)}  # fmt: skip
    results, _ = gather(cells, ["a", "b", "cc"])
    plain = {
        name: np.mean([cells[name, seed][1] for seed in range(3)]) for name in results.variants
    }
    found = {one.variant: one for one in accuracy_figures(results) if one.group == "all"}
    assert {name: one.mean for name, one in found.items()} == pytest.approx(plain)
    told = {one.variant: one for one in differences(results, "a", ["all"]) if one.group == "all"}
    assert told["b"].mean == pytest.approx(plain["b"] - plain["a"])
    assert told["b"].low < told["b"].mean < told["b"].high
    assert told["b"].verdict == "better"
    assert told["cc"].verdict == "not significant"
    assert {one.verdict for one in differences(results, "a", ["all"]) if one.group != "all"} == {
        "not tested"
    }
    # Two seeds far apart: by Student's t alone the interval would be -2.7 to 3.7.
    apart = [("a", 0, 0.75), ("a", 1, 0.25), ("b", 0, 0.25), ("b", 1, 0.75)]
    rows = {
        (name, seed): (QUESTIONS, np.arange(160) % 4 < 4 * share) for name, seed, share in apart
    }
    results, _ = gather(rows, ["a", "b"])
    (wide,) = [one for one in accuracy_figures(results) if (one.variant, one.group) == ("a", "all")]
    assert (wide.mean, wide.low, wide.high) == (0.5, 0.0, 1.0)
    (wide,) = [one for one in differences(results, "a", ["all"]) if one.group == "all"]
    assert (wide.mean, wide.low, wide.high) == (0.0, -1.0, 1.0)
    with pytest.raises(UserError, match="no group of questions is named size: huge; there are all"):
        differences(results, "a", ["size: huge"])


@pytest.fixture
def planted(tiny_run, tmp_path):
    """A study whose cells have results: the pooled MLP is worse."""
    path = write_study(tmp_path, tiny_run, seeds=[0, 1, 2])
    study = load_study(path)
    cells = cells_of(study, "quick")
    curve = [
        {"step": n, "images": 2 * n, "loss": 5 / n, "gap": 0.1 * n, "seconds": 0.5}
        for n in (1, 2, 3)
    ]
    for cell in cells:
        right = answers({"ParGo": 0.8, "pooled": 0.3}[cell.variant], cell.seed)
        result = {
            "variant": cell.variant, "seed": cell.seed, "settings": cell.settings(),
            "answers": [
                {**vars(question), "prompt": "<image>\nWhat is <it>?", "truth": "red", "answer": "blue",
                 "right": value}
                for question, value in zip(QUESTIONS, right, strict=True)
            ],
            "scores": {"scenes": {"unit": "%", "headline": "overall", "figures": {"overall": 50.0}}},
            "projector": {"tokens": 10, "parameters": 1000 + 500 * (cell.variant == "pooled"), "ms": 0.5},
            "images": 6, "curves": {"first": curve, "second": curve},
            "seconds": {"cell": 60.0, "step": {"first": 0.5, "second": 0.5}},
            "machine": {"device": "CPU", "python": "3"},
        }  # fmt: skip
        cell.folder.mkdir(parents=True)
        cell.result.write_text(json.dumps(result))
    return study, cells


def test_the_report_says_what_was_planted_and_is_whole(planted, tmp_path):
    study, cells = planted
    findings = find(study, cells, study.size("quick"))
    assert claims(findings)[0].startswith("all: pooled is worse than ParGo: -")
    assert "blind" not in summary(findings)  # these questions are not those of the shards
    paths = write_report(findings, tmp_path / "report")
    assert [path.name for path in paths] == ["report.json", "report.html", "report.png"]
    figures = json.loads(paths[0].read_text())
    assert figures["costs"]["pooled"]["equal"] == {"tokens": True, "parameters": False}
    assert {row["verdict"] for row in figures["differences"] if row["group"] == "size: small"} == {
        "worse"
    }
    page = paths[1].read_text()
    assert "What is &lt;it&gt;?" in page  # escaped
    assert page.count("data:image/png;base64,") >= 3 + 4  # drawings, and wins with their scenes
    assert paths[2].stat().st_size > 10_000


def test_one_seed_makes_no_claims(planted):
    study, cells = planted
    for cell in cells:
        if cell.seed:
            cell.result.unlink()
    findings = find(study, cells, study.size("quick"))
    assert any(note.startswith("one seed") for note in findings.notes)
    assert all("not significant" in said for said in claims(findings))


def test_a_result_of_other_settings_is_not_taken(planted):
    study, cells = planted
    assert finished(cells[0])
    result = json.loads(cells[0].result.read_text())
    result["settings"]["first"]["train"]["steps"] = 99
    cells[0].result.write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"first.train.steps was 99, is 6\): remove that folder"):
        finished(cells[0])


def test_cells_that_another_study_has_finished_are_taken_and_no_others(planted, tiny_run, tmp_path):
    """The other study calls ParGo `reference`, and its pooled MLP has fewer tokens."""
    _, finished_cells = planted
    variants = {
        "reference": {},
        "pooled": {"all": {"projector": {"type": "adaptive_pool", "tokens": 4}}},
    }
    (tmp_path / "b").mkdir()
    path = write_study(
        tmp_path / "b", tiny_run, seeds=[0, 1, 7], variants=variants, reference="reference"
    )
    # The same data as the first study's, which its settings name.
    for stage in ("first", "second"):
        shutil.copy(tmp_path / f"{stage}.yaml", tmp_path / f"b/{stage}.yaml")
    study = load_study(path)
    cells = cells_of(study, "quick")
    size = study.size("quick")
    with pytest.raises(UserError, match="no result.json lies there"):
        take_results(tmp_path / "b", cells, size)
    taken = take_results(tmp_path / "out/quick", cells, size)
    assert [(cell.variant, cell.seed) for cell in taken] == [("reference", 0), ("reference", 1)]
    assert finished(taken[0])
    copy = json.loads(taken[1].result.read_text())
    source = finished_cells[2]
    assert (source.variant, source.seed) == ("ParGo", 1)
    assert copy.pop("taken_from") == str(source.result)
    assert copy.pop("variant") == "reference"
    original = json.loads(source.result.read_text())
    assert copy == {key: value for key, value in original.items() if key != "variant"}
    assert take_results(tmp_path / "out/quick", cells, size) == []  # nothing is taken twice


def test_published_rows_have_their_sources_and_the_studys_own_stand_beside():
    def mme(value: float) -> dict:
        return {"mme": {"unit": "points", "headline": "total", "figures": {"total": value}}}

    scores = {"ParGo": mme(1900.0), "Q-Former": mme(1700.5)}
    table = beside_published(scores)
    assert "1951.3" in table
    assert table.count("arXiv 2312.06742") == 3
    assert "+259.96" in table
    assert "the same of this study: +199.50" in table
    assert claim_of({"ParGo": scores["ParGo"]}) is None
