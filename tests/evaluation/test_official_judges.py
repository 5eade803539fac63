"""HallusionBench and MMVP by the rules of their authors: a judge with their words."""

from __future__ import annotations

import json

import pytest
from answered_mmvet import answered
from judging import judge, reply

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Item
from pargo_ds.evaluation.benchmarks import BENCHMARKS, hallusion, mmvp
from pargo_ds.evaluation.judge import VerdictStore
from pargo_ds.evaluation.score import report, score_folder, unscored

SAID = ("It is so.", "Yes.", "One cannot know.", "yes")


def hallusion_item(images: bool) -> Item:
    shown = ("image",) if images else ()
    return Item(id="i", prompt="", images=shown, truth="yes")


@pytest.mark.parametrize(
    ("reply", "said", "with_image", "without"),
    [
        ("correct", "correct", 1, 1),
        ("“Correct”.", "correct", 1, 1),
        ("incorrect", "incorrect", 0, 0),
        ("It is not correct", "correct", 1, 1),
        ("correct, not incorrect", "incorrect", 0, 0),
        ("unclear", "unclear", 0, 1),
        ("I cannot say", "unclear", 0, 1),
    ],
)
def test_hallusion_looks_for_incorrect_first_and_forgives_what_no_figure_tells(
    reply, said, with_image, without
):
    for images, right in ((True, with_image), (False, without)):
        found = hallusion.graded(hallusion_item(images), reply)
        assert (found.said, found.right) == (said, right)


@pytest.mark.parametrize(
    ("reply", "said"),
    [("yes", "yes"), ("No", "no"), ("YES\n", "yes"), ("yes.", None), ("Yes, it does", None)],
)
def test_mmvp_takes_yes_or_no_and_nothing_else(reply, said):
    found = mmvp.graded(reply)
    assert (found.said, found.right) == (said, float(said == "yes"))


def counted_officially(rows) -> dict[str, float]:
    """aAcc, fAcc and qAcc counted over the rows of the authors' JSON, as their tables are."""
    for row in rows:
        lenient = row["category"] == "VS" and row["figure_id"] == "0"
        row["correct"] = row["check"] == "1" or (lenient and row["check"] == "2")
    figures, questions = {}, {}
    for row in rows:
        own = (row["category"], row["subcategory"], row["set_id"])
        if not (row["category"] == "VS" and row["figure_id"] == "0"):
            figures.setdefault((*own, row["figure_id"]), []).append(row["correct"])
        questions.setdefault((*own, row["question_id"]), []).append(row["correct"])
    return {
        "aAcc": 100 * sum(row["correct"] for row in rows) / len(rows),
        "fAcc": 100 * sum(map(all, figures.values())) / len(figures),
        "qAcc": 100 * sum(map(all, questions.values())) / len(questions),
    }


@pytest.mark.parametrize("checks", ["1112", "2111", "2011", "2222", "0101"])
def test_hallusion_by_a_judge_has_the_figures_of_its_program(checks, tmp_path):
    answered(tmp_path / "out", SAID, name="hallusion")
    words = {"0": "incorrect", "1": "correct", "2": "unclear"}
    replies = {text: words[check] for text, check in zip(SAID, checks, strict=True)}

    def by_answer(text):
        return reply(replies[text.split("Prediction answer:")[1].split("\nOutput:")[0]])

    bodies = judge(tmp_path / "out", by_answer)
    (turn,) = bodies[0]["messages"]
    assert turn["content"].endswith(
        '"unclear". \n\n Question:Is it so?\nReference answer: It is 0 and 0.\n'
        "Prediction answer:It is so.\nOutput:"
    )
    found = score_folder(tmp_path / "out")
    values = {name: figure["value"] for name, figure in found["hallusion"]["figures"].items()}
    rows = json.loads((tmp_path / "hallusion_files/HallusionBench.json").read_text())
    for row, check in zip(rows, checks, strict=True):
        row["check"] = check
    assert values == pytest.approx(counted_officially(rows))
    shown = report(found)
    assert "HallusionBench, by a judge (hallusion)" in shown
    assert "graded by grader (answered as grader-2026), prompt HallusionBench's utils.py" in shown
    # Beside it what words alone say; a judge's words are no yes-ratio.
    assert found["hallusion"]["other_rules"] == {"by the rule without a judge": 25.0}
    assert found["hallusion"]["yes"] is None


def test_mmvp_by_a_judge_counts_pairs_and_is_asked_as_by_its_authors(tmp_path):
    texts = ("Left", "It is on the right.", "to the left", "nowhere")
    answered(tmp_path / "out", texts, name="mmvp")
    assert "MMVP, by letters" in report(score_folder(tmp_path / "out"))
    replies = dict(zip(texts, ("Yes", "yes", "yes", "no"), strict=True))

    def by_answer(text):
        return reply(replies[text.removesuffix("?").split(", answer:")[1]])

    system, turn = judge(tmp_path / "out", by_answer)[1]["messages"]
    assert (system["role"], turn["role"]) == ("system", "user")
    assert system["content"].endswith("Please answer in only yes or no.")
    assert turn["content"] == (
        "Given the following question Where is it? (a) Left (b) Right, the correct answer is (b). "
        "Does the following answer correctly answers the question, answer:It is on the right.?"
    )
    found = score_folder(tmp_path / "out")["mmvp"]
    assert found["figures"]["pairs"]["value"] == 50
    assert found["figures"]["questions"]["value"] == 75
    assert found["other_rules"] == {"by the rule without a judge": 0.0}


def test_a_judge_that_has_not_said_all_is_told_of_and_the_figures_are_by_words(tmp_path):
    store = answered(tmp_path / "out", SAID, name="hallusion")
    judge(tmp_path / "out", lambda text: reply("correct"))
    path = VerdictStore(store).folder / "verdicts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert score_folder(tmp_path / "out")["hallusion"]["title"] == "HallusionBench, by words"
    (line,) = unscored(tmp_path / "out")
    assert "1 of 4 answers have no verdict of the judge yet; the figures above are by words" in line


def test_a_judge_needs_the_reference_answers(tmp_path):
    store = answered(tmp_path / "out", SAID, name="hallusion")
    grading = BENCHMARKS["hallusion"].grading
    item = store.items()[0]
    item.meta["details"] = ""
    with pytest.raises(UserError, match="VS_chart_3_0_0: the files had no gt_answer_details"):
        grading.truth(item)
