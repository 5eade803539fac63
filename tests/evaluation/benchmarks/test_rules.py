"""Each official rule on odd answers; the expected values are what the official programs say.

They were compared with those programs, or with copies typed from them, on 60,000 random texts for
each rule (docs/evaluation.md); the tables here are what may surprise.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargo_ds.evaluation.benchmark import Answer, Item, Judgement
from pargo_ds.evaluation.benchmarks import (
    BENCHMARKS,
    blink,
    choice,
    countbench,
    cvbench,
    gqa,
    hallusion,
    mmbench,
    mme,
    mmstar,
    mmvp,
    pope,
    realworldqa,
    refcoco,
    scienceqa,
    seed,
    textvqa,
    vqav2,
    vstar,
)
from pargo_ds.evaluation.benchmarks.vqa_text import evalai, share_of_people


def item(truth, options=()) -> Item:
    return Item(id="i", prompt="", images=(), truth=truth, options=tuple(options))


def judge(module, said: str, truth, options=()) -> Judgement:
    return module.judge(item(truth, options), Answer(id="i", text=said))


@pytest.mark.parametrize(
    ("answer", "official", "released"),
    [
        ("The answer is yes", None, "yes"),
        ("There is no dog", None, "no"),
        ("Not sure", "no", "no"),
        ("Yes, there are no dogs left", "yes", "yes"),
        ("Unknown", None, "no"),
        ("y", None, None),
        ("YES.", "yes", "yes"),
        (" yes", "yes", "yes"),
        ("  yes", None, "yes"),
        ("Nope", "no", "no"),
        ("", None, None),
    ],
)
def test_mme_looks_at_four_characters_and_the_authors_at_twenty(answer, official, released):
    assert mme.parse(answer) == official
    assert mme.parse(answer, mme.AUTHORS) == released
    assert judge(mme, answer, "yes").right == (official == "yes")
    assert mme.judge_as_released(item("no"), Answer(id="i", text=answer)).right == (
        released == "no"
    )


@pytest.mark.parametrize(
    ("answer", "said", "unparsed"),
    [
        ("Yes.", "yes", False),
        ("No, there is none", "no", False),
        ("It is not there", "no", False),
        ("NO", "yes", True),
        ("Nothing", "yes", True),
        ("There is. No dog", "yes", True),
        ("no.", "no", False),
        ("Yes, but not a dog", "no", False),
        ("", "yes", True),
    ],
)
def test_pope_takes_for_a_yes_what_it_cannot_read(answer, said, unparsed):
    assert pope.parse(answer) == said
    judgement = judge(pope, answer, "yes")
    assert judgement.right == (said == "yes")
    assert (judgement.said is None) == unparsed


@pytest.mark.parametrize(
    ("answer", "options", "said"),
    [
        ("A", ["red", "blue"], "A"),
        ("(B) blue", ["red", "blue"], "B"),
        ("The answer is A.", ["red", "blue"], "A"),
        ("A because it is red and not at all so blue", ["red", "blue"], None),
        ("A red one", ["red", "blue"], "A"),
        ("it is blue", ["red", "blue"], "B"),
        ("red or blue", ["red", "blue"], None),
        ("A or B", ["red", "blue"], None),
        ("C", ["red", "blue"], None),
        ("a", ["red", "blue"], None),
        ("Z red", ["red", "blue"], None),
        ("Cannot determine the answer, A", ["red", "blue"], None),
        ("It is certainly, and without any doubt, blue", ["red", "blue"], None),
        ("", ["red", "blue"], None),
    ],
)
def test_mmbench_takes_a_late_letter_or_the_only_option_in_the_text(answer, options, said):
    assert choice.letter_or_text(answer, options) == said
    assert judge(mmbench, answer, "A", options) == Judgement(said, float(said == "A"))


@pytest.mark.parametrize(
    ("answer", "before", "since"),
    [
        ("The answer is **B**, as A is wrong.", None, "B"),
        ("The ANSWER  is red", "A", "A"),
        ("The answer is beige, or red", "A", "B"),
        ("The answer is a blue one", "B", "A"),
        ("The answer is: B, as A is wrong.", None, None),
        ("The answer is D", None, None),
    ],
)
def test_vlmevalkit_reads_a_letter_behind_answer_is_since_june_2026(answer, before, since):
    options = ["red", "blue", "none of these colours"]
    assert choice.letter_or_text(answer, options) == before
    assert choice.letter_or_text(answer, options, sentence=True) == since
    found = mmbench.judge_with_sentences(item("B", options), Answer(id="i", text=answer))
    assert found == Judgement(since, float(since == "B"))


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (((4.0, 2), (3.0, 1), (9.0, 3), (8.0, 2)), "A"),  # by sums it would be B
        (((4.0, 2), (2.0, 1), (9.0, 3), (8.0, 2)), "A"),  # equal: the first one
        (((4.0, 2), (9.0, 9), (9.0, 3), (8.0, 2)), "B"),
    ],
)
def test_seed_takes_the_lowest_loss_a_token(losses, said):
    found = seed.judge(item("A", "wxyz"), Answer(id="i", losses=losses))
    assert found == Judgement(said, float(said == "A"))


@pytest.mark.parametrize(
    ("answer", "said"), [("A", "A"), ("A.", None), ("(A)", None), ("a", None), ("E", None)]
)
def test_seed_of_llava_is_equality(answer, said):
    assert judge(seed, answer, "A", "wxyz") == Judgement(said, float(said == "A"))


def test_vstar_has_the_first_option_right():
    question = item("one", ["one", "two"])
    assert vstar.judge(question, Answer(id="i", losses=((1.0, 2), (0.6, 1)))).right == 1
    assert vstar.judge(question, Answer(id="i", losses=((1.0, 2), (0.4, 1)))).right == 0


@pytest.mark.parametrize(
    ("answer", "llava", "official"),
    [("Red.", 1, 0), ("red", 1, 1), ("a red", 0, 0), ("red. ", 0, 0), ("red...", 1, 0)],
)
def test_gqa_is_equality(answer, llava, official):
    assert judge(gqa, answer, "red").right == llava
    assert gqa.judge_as_it_is(item("red"), Answer(id="i", text=answer)).right == official


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        ("The two dogs.", "2 dogs"),
        ("isnt", "isn't"),
        ("lets go", "lets go"),
        ("youd've", "you'd've"),
        ("the dog's tail", "dog 's tail"),
        ("1,000", "1000"),
        ("5.3", "5.3"),
        ("a.m.", "am"),
        ("10 .5", "10 .5"),
        ("red-blue", "red blue"),
        ("red - blue", "red blue"),
        ("None", "0"),
        ("An apple a day", "apple day"),
        ("", ""),
    ],
)
def test_evalai_writes_answers_its_own_way(raw, written):
    assert evalai(raw) == written


@pytest.mark.parametrize(
    ("matches", "share"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_three_others_of_ten_make_a_whole_point(matches, share):
    people = ["red"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert share_of_people("red", people) == pytest.approx(share)


@given(st.sampled_from("abc"), st.lists(st.sampled_from("abcd"), min_size=10, max_size=10))
def test_the_share_is_that_of_leaving_each_person_out(answer, people):
    """The official loop, written out."""
    points = []
    for left_out in range(10):
        others = people[:left_out] + people[left_out + 1 :]
        points.append(min(1.0, others.count(answer) / 3))
    assert share_of_people(answer, people) == pytest.approx(sum(points) / 10)


@pytest.mark.parametrize(
    ("answer", "people", "after", "as_it_is"),
    [
        ("Yes", ["yes"] * 10, 1, 0),
        ("yes.", ["yes"] * 10, 1, 0),
        ("Two", ["2"] * 9 + ["two dogs"], 1, 1),
        ("A dog", ["dog"] * 9 + ["cat"], 1, 1),
        ("a dog", ["a dog"] * 10, 0, 1),
    ],
)
def test_vqa_writes_truths_in_one_way_only_where_people_differ(answer, people, after, as_it_is):
    assert judge(vqav2, answer, people).right == after
    assert vqav2.judge_as_it_is(item(people), Answer(id="i", text=answer)).right == as_it_is


def test_textvqa_writes_all_answers_in_one_way():
    assert judge(textvqa, "the dog", ["a dog"] * 10).right == 1
    assert judge(textvqa, "Stop!", ["STOP"] * 3 + ["stop sign"] * 7).right == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("B", "B"),
        (" B ", "B"),
        ("B. green", "B"),
        ("B.", None),
        ("B) green", None),
        ("(B)", None),
        ("The answer is B", None),
        ("So: The answer is B.", "B"),
        ('"The answer is A." is incorrect. The answer is B.', None),
        ("the answer is B", None),
        ("The answer is Beige", "B"),
        ("D", None),
        ("b", None),
        ("B\nbecause", None),
        ("The answer is B\n\nbecause", None),
    ],
)
def test_scienceqa_reads_llavas_three_forms(answer, said):
    assert scienceqa.parse(answer, 3) == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes.", "yes"),
        ("No, not at all", "no"),
        ("yes and no", None),
        ("It is not", None),
        ("nothing", None),
        ("yes/no", None),
        ("The answer: yes", "yes"),
    ],
)
def test_hallusion_needs_one_of_the_words_alone(answer, said):
    assert hallusion.parse(answer) == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("a", "(a)"),
        ("(B)", "(b)"),
        ("A.", "(a)"),
        ("(a) Left", "(a)"),
        ("The answer is (b).", "(b)"),
        ("a) Left", "(a)"),
        ("Right", "(b)"),
        ("right.", "(b)"),
        ("A dog", None),
        ("both (a) and (b)", None),
        ("", None),
    ],
)
def test_mmvp_reads_a_letter_or_an_option(answer, said):
    assert mmvp.parse(answer, ["Left", "Right"]) == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [("(B)", "B"), ("b", "B"), ("B. 1", "B"), ("The answer is B", "T"), ("1", None), ("", None)],
)
def test_cvbench_takes_the_first_letter_whatever_it_is(answer, said):
    assert choice.leading_letter(answer) == said
    assert judge(cvbench, answer, "B").right == (said == "B")


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("A", "A", 1),
        ("A.", "A", 1),
        ("(A) Yes", "A", 1),
        ("a", "A", 1),
        ("A car", "A", 1),
        ("An A", "A", 0),
        ("downhill.", "Downhill", 1),
        ("going downhill", "Downhill", 0),
        ("3", "3", 1),
        ("three", "3", 0),
        ("", "3", 0),
    ],
)
def test_realworldqa_is_equality_of_letter_or_word(answer, truth, right):
    assert judge(realworldqa, answer, truth).right == right


@pytest.mark.parametrize(
    ("answer", "right", "anywhere"),
    [("1", 1, 1), ("One.", 1, 0), ("10", 0, 1), ("there is 1", 0, 1), ("", 0, 0)],
)
def test_countbench_compares_numbers_and_vlmevalkit_digits(answer, right, anywhere):
    assert judge(countbench, answer, "1").right == right
    assert countbench.judge_anywhere(item("1"), Answer(id="i", text=answer)).right == anywhere


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("B", "(B)"),
        ("(B)", "(B)"),
        ("I say (B) here", "(B)"),
        ("(A) is wrong\n\nso (B) it is", "(B)"),
        ("(A) or (B)", None),
        ("(B).", None),
        ("B.", None),
        ("E", "(E)"),
        ("(C)", "(C)"),
        ("say (C)", None),
    ],
)
def test_blink_needs_the_letter_as_a_word(answer, said):
    assert blink.parse(answer, 2) == said


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", 1),
        ("b) green", 1),
        ("(B) green", 1),
        ("Option B", 1),
        ("The answer is B", 1),
        ("Blue", 1),
        ("The answer is (B)", 0),
        ("It is B", 0),
        ("", 0),
    ],
)
def test_mmstar_looks_at_four_places(answer, right):
    assert judge(mmstar, answer, "B").right == right


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[0.25, 0.5, 0.75, 1.0]", [0.25, 0.5, 0.75, 1.0]),
        ("It is at [0.25,0.5,0.75,1].", [0.25, 0.5, 0.75, 1.0]),
        ("[[250, 500, 750, 1000]]", [0.25, 0.5, 0.75, 1.0]),
        ("<box>[[1, 1, 1, 1]]</box>", [0.001, 0.001, 0.001, 0.001]),
        ("[0, 0, 0, 1] or [0.5, 0, 1, 1]", [0.0, 0.0, 0.0, 1.0]),
        ("0.25, 0.5, 0.75, 1.0", None),
        ("(0.25, 0.5, 0.75, 1.0)", None),
        ("[0.25, 0.5, 0.75]", None),
        ("[0.25, 0.5, 0.75, right]", None),
        ("[nan, 0, 1, 1]", None),
        ("[1e999, 0, 1, 1]", None),
        ("", None),
    ],
)
def test_refcoco_reads_the_first_box_in_shares_or_thousandths(answer, box):
    assert refcoco.parse(answer) == box


@given(st.lists(st.integers(0, 100), min_size=8, max_size=8))
def test_refcocos_iou_is_torchvisions(numbers):
    torch = pytest.importorskip("torch")
    box_iou = pytest.importorskip("torchvision.ops").box_iou
    boxes = []
    for x, y, width, height in (numbers[:4], numbers[4:]):
        boxes.append([x, y, x + width + 1, y + height + 1])
    one, other = torch.tensor(boxes, dtype=torch.float64)[:, None]
    # measured: equal but for the last bit of a quotient
    assert refcoco.iou(*boxes) == pytest.approx(float(box_iou(one, other)), rel=1e-12)


@pytest.mark.parametrize(
    ("answer", "official", "in_square"),
    [
        ("[0.5, 0.0, 1.0, 0.25]", 1, 0),  # the truth, in shares of 200 x 100 pixels
        ("[0.5, 0.25, 1.0, 0.375]", 0, 1),  # the truth, in shares of the padded square
        ("[500, 0, 1000, 125]", 1, 0),  # IoU 0.5
        ("[0.5, 0.0, 1.0, 0.124]", 0, 0),
        ("[1.0, 0.25, 0.5, 0.0]", 0, 0),
        ("none", 0, 0),
    ],
)
def test_refcoco_is_right_from_half_on_and_llavas_square_is_another_rule(
    answer, official, in_square
):
    asked = Item(
        id="i", prompt="", images=(), truth=[0.5, 0.0, 1.0, 0.25], meta={"size": [200, 100]}
    )
    said = Answer(id="i", text=answer)
    assert refcoco.judge(asked, said).right == official
    assert refcoco.judge_in_square(asked, said).right == in_square


def test_every_benchmark_names_its_prompts_rule_source_and_licence():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.prompts
        assert set(benchmark.prompts) <= {"official", "llava", "authors"}
        for text in (benchmark.files, benchmark.source, benchmark.licence, benchmark.rule):
            assert text
        for prompt in benchmark.prompts.values():
            assert prompt.source
