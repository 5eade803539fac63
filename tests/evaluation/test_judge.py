"""Grades of another model: what is read in its replies, what is kept, what the table says."""

from __future__ import annotations

import json

import pytest
from answered_mmvet import answered
from judging import judge, reply

from pargo_ds.errors import UserError
from pargo_ds.evaluation.ask_judge import TRIES, JudgeStoppedError
from pargo_ds.evaluation.benchmark import Answer
from pargo_ds.evaluation.benchmarks import BENCHMARKS, mmvet
from pargo_ds.evaluation.benchmarks.mmvet import grade_of
from pargo_ds.evaluation.judge import VerdictStore, messages, with_prompt
from pargo_ds.evaluation.score import report, score_folder, unscored
from pargo_ds.evaluation.store import OtherAnswersError, digest


def by_answer(grades):
    """Replies by what stands behind `Answer to grade:`."""
    return lambda text: reply(grades[text.split("Answer to grade: ")[1].split("\n")[0]])


GRADES = {"red": "1.0", "x = -1": "0.5", "three": "I cannot tell."}


@pytest.mark.parametrize(
    "text, grade",
    [
        ("1.0", 1.0), ("0", 0.0), ("0.7\n", 0.7), ("Grade: 0.3.", 0.3), ("**0.5**", 0.5),
        ("", None), ("none", None), ("0.5 or 0.6", None), ("7", None), ("1.5", None),
        ("8/10", None), ("-0.5", None), ("10", None),
    ],
)  # fmt: skip
def test_a_grade_is_the_one_number_in_a_reply(text, grade):
    assert grade_of(text) == grade


def test_figures_are_the_means_of_the_grades_and_the_table_names_judge_prompt_and_losses(tmp_path):
    answered(tmp_path / "out")
    assert score_folder(tmp_path / "out") == {}
    bodies = judge(tmp_path / "out", by_answer(GRADES))
    assert [body["temperature"] for body in bodies] == [0, 0, 0]
    scores = score_folder(tmp_path / "out")
    figures = {name: found["value"] for name, found in scores["mmvet"]["figures"].items()}
    assert figures == {"overall": 50.0, "ocr": 100.0, "rec": 25.0, "spat": 25.0}
    assert scores["mmvet"]["unparsed"] == 1
    shown = report(scores)
    assert "graded by grader (answered as grader-2026), prompt grade_v1 " in shown
    assert digest(mmvet.GRADE)[:12] in shown
    assert "1 answers could not be judged and count 0" in shown
    assert unscored(tmp_path / "out") == []


def test_the_judges_own_words_are_kept_and_nothing_is_asked_twice(tmp_path):
    store = answered(tmp_path / "out")
    judge(tmp_path / "out", by_answer(GRADES))
    kept = {verdict.answer: verdict.raw for verdict in VerdictStore(store).verdicts().values()}
    assert kept == GRADES
    assert judge(tmp_path / "out", by_answer({})) == []


def test_a_line_that_a_kill_has_cut_is_judged_again(tmp_path):
    store = answered(tmp_path / "out")
    judge(tmp_path / "out", by_answer(GRADES))
    path = VerdictStore(store).folder / "verdicts.jsonl"
    path.write_text(path.read_text()[:-5])
    assert score_folder(tmp_path / "out") == {}
    assert len(unscored(tmp_path / "out")) == 1
    assert len(judge(tmp_path / "out", by_answer(GRADES))) == 1
    assert len(path.read_text().splitlines()) == 3
    assert score_folder(tmp_path / "out")["mmvet"]["figures"]["overall"]["value"] == 50


def test_another_judge_or_prompt_is_refused_by_name(tmp_path):
    answered(tmp_path / "out")
    judge(tmp_path / "out", by_answer(GRADES))
    other = tmp_path / "other.txt"
    other.write_text(mmvet.GRADE + " ")
    for changes in ({"model": "other"}, {"mmvet": other}):
        with pytest.raises(OtherAnswersError, match="holds verdicts by grader with the prompt"):
            judge(tmp_path / "out", by_answer(GRADES), **changes)


def test_what_the_endpoint_puts_off_is_asked_again_and_what_it_refuses_is_noted(tmp_path):
    store, seen = answered(tmp_path / "out"), []

    def replies(text):
        seen.append(text)
        if "three" in text:
            return reply(kind="rejected", reason="400: policy")
        return reply(kind="again", reason="429") if seen.count(text) == 1 else reply("0.5")

    judge(tmp_path / "out", replies)
    assert len(seen) == 5
    reasons = {
        verdict.answer: verdict.reason for verdict in VerdictStore(store).verdicts().values()
    }
    assert reasons == {"red": "", "x = -1": "", "three": "400: policy"}
    assert "1 answers could not be judged" in report(score_folder(tmp_path / "out"))


def test_an_endpoint_that_answers_nobody_ends_it_and_what_was_paid_stays(tmp_path):
    store = answered(tmp_path / "out")
    replies = by_answer(GRADES)

    def first_only(text):
        return (
            replies(text) if "red" in text.split("Answer")[1] else reply(kind="stop", reason="401")
        )

    with pytest.raises(JudgeStoppedError, match="401"):
        judge(tmp_path / "out", first_only)
    assert [verdict.answer for verdict in VerdictStore(store).verdicts().values()] == ["red"]
    assert len(judge(tmp_path / "out", by_answer(GRADES))) == 2
    busy = answered(tmp_path / "busy")
    with pytest.raises(JudgeStoppedError, match=f"{TRIES} attempts: 429"):
        judge(tmp_path / "busy", lambda text: reply(kind="again", reason="429"))
    assert VerdictStore(busy).verdicts() == {}


def test_differences_are_of_one_judge_only(tmp_path):
    answered(tmp_path / "out")
    answered(tmp_path / "other", texts=("blue", "x = -1", "three"))
    for name in ("out", "other"):
        judge(tmp_path / name, by_answer({**GRADES, "blue": "0.0"}))
    scores = score_folder(tmp_path / "out", tmp_path / "other")["mmvet"]
    assert scores["difference"]["overall"]["value"] == pytest.approx(100 / 3)
    path = tmp_path / "other/mmvet/judge/asked.json"
    path.write_text(path.read_text().replace('"grader"', '"other grader"'))
    with pytest.raises(OtherAnswersError, match="different models"):
        score_folder(tmp_path / "out", tmp_path / "other")


def test_an_answer_with_a_place_in_it_is_asked_as_it_is(tmp_path):
    store = answered(tmp_path / "out", texts=("{truth} {question}", "x", "y"))
    (tmp_path / "p").write_text("{answer}|{truth}|{question}")
    grading = with_prompt(BENCHMARKS["mmvet"], tmp_path / "p")
    (turn,) = messages(grading, store.items()[0], Answer(id="v1_0", text="{truth} {question}"))
    # The authors' evaluator puts blanks around <OR>.
    assert turn["content"] == "{truth} {question}|red <OR> a red square|What is 0?"


def test_a_prompt_of_ones_own_has_all_places(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("{question} {answer}")
    with pytest.raises(UserError, match=r"has no \{truth\} in it"):
        with_prompt(BENCHMARKS["mmvet"], path)
    path.write_text("{question} | {truth} | {answer} | ")
    assert with_prompt(BENCHMARKS["mmvet"], path).name == "mine.txt"
    with pytest.raises(UserError, match="cannot be read"):
        with_prompt(BENCHMARKS["mmvet"], tmp_path / "absent.txt")
    with pytest.raises(UserError, match="no judge grades gqa"):
        with_prompt(BENCHMARKS["gqa"], path)


def test_where_nothing_needs_a_judge_it_is_not_asked(tmp_path):
    answered(tmp_path / "out", texts=("a",) * 3, name="vqav2test")
    with pytest.raises(UserError, match="need a judge"):
        judge(tmp_path / "out", by_answer({}))
    assert json.loads((tmp_path / "out/vqav2test/asked.json").read_text())["number"] == 3
