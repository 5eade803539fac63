"""Exact match, blind baseline, tables."""

from __future__ import annotations

import pytest

from pargo_ds.data.shards.schema import Sample
from pargo_ds.evaluation.scoring import (
    Question,
    accuracy_table,
    blind_answers,
    count_table,
    is_right,
    normalise,
    questions_of,
)


def question(
    text: str, answer: str, kind: str = "existence", size: str = "small", held_out: bool = False
) -> Question:
    return Question(scene=0, question=text, answer=answer, type=kind, size=size, held_out=held_out)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("Yes.", "yes", True),
        ("  a  Dog!", "a dog", True),
        ("dog", "a dog", False),
        ("hot-dog", "hot dog", True),
        ("", "no", False),
        ("yes no", "yes", False),
    ],
)
def test_exact_match_ignores_case_and_punctuation_only(
    answer: str, truth: str, right: bool
) -> None:
    assert is_right(answer, truth) is right


def test_normalise_keeps_words_apart() -> None:
    assert normalise("At the  top-left, please.") == "at the top left please"


def test_blind_baseline_takes_the_commonest_answer_per_text() -> None:
    train = [question("Is there a dog?", "yes")] * 2 + [question("Is there a dog?", "no")]
    train += [question("What colour is it?", "red", "colour")] * 5
    assert blind_answers(train, [question("is there a dog", "no")]) == ["yes"]


def test_blind_baseline_falls_back_to_type_then_to_all() -> None:
    train = [question("Is there a dog?", "no")] * 3 + [
        question("What colour is it?", "red", "colour")
    ] * 2
    unseen_text = question("What colour is the cat?", "blue", "colour")
    unseen_type = question("How many?", "two", "count")
    assert blind_answers(train, [unseen_text, unseen_type]) == ["red", "no"]


def test_blind_baseline_breaks_ties_by_the_alphabet() -> None:
    train = [question("Is there a dog?", "yes"), question("Is there a dog?", "no")]
    assert blind_answers(train, [train[0]]) == ["no"]


def test_blind_baseline_without_training_questions_is_an_error() -> None:
    with pytest.raises(ValueError, match="no training questions"):
        blind_answers([], [question("Is there a dog?", "yes")])


def test_accuracy_is_counted_by_type_size_and_concept() -> None:
    asked = [
        question("a", "yes", "existence", "salient"),
        question("b", "no", "existence", "small"),
        question("c", "no", "existence", "small", held_out=True),
        question("d", "red", "colour", "salient"),
    ]
    table = accuracy_table(asked, ["yes", "no", "yes", "blue"])
    assert table == {
        "overall": 0.5,
        "by_type": {"colour": 0.0, "existence": pytest.approx(2 / 3)},
        "by_size": {"salient": 0.5, "small": 0.5},
        "by_concept": {"held_out": 0.0, "seen": pytest.approx(2 / 3)},
        "by_type_and_size": {
            "colour": {"salient": 0.0},
            "existence": {"salient": 1.0, "small": 0.5},
        },
    }
    counts = count_table(asked)
    assert counts["overall"] == 4
    assert counts["by_type_and_size"] == {
        "colour": {"salient": 1},
        "existence": {"salient": 1, "small": 2},
    }


def test_answers_and_questions_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="1 questions and 0 answers"):
        accuracy_table([question("a", "yes")], [])


def test_questions_are_read_from_meta_and_a_missing_field_is_named() -> None:
    entry = {"question": "a?", "answer": "yes", "type": "count", "size": "scene", "held_out": True}
    first, second = Sample(id="s0"), Sample(id="s1", meta={"questions": [entry]})
    assert questions_of([first, second]) == [
        Question(scene=1, question="a?", answer="yes", type="count", size="scene", held_out=True)
    ]
    broken = Sample(id="s2", meta={"questions": [{"question": "a?"}]})
    with pytest.raises(ValueError, match=r"sample s2: meta\['questions'\]\[0\] has no 'answer'"):
        questions_of([broken])
