"""Figures against independent computations, intervals, and differences between models."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import official_layouts as layouts
import pytest

from pargo_ds.data.shards.mds import read_samples
from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, Item, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS, mme, pope, scenes
from pargo_ds.evaluation.score import compare, report, score, score_folder
from pargo_ds.evaluation.scoring import accuracy_table, questions_of
from pargo_ds.evaluation.store import OtherAnswersError, Store, digest, item_lines

SAID = ("Yes", "No", "yes, it is", "no.", "The dog", "Not sure", "")


def mme_items(pairs: int = 30) -> list[Item]:
    """Questions of all tasks, `pairs` images each."""
    return [
        Item(
            id=f"{task}/{pair}/{truth}",
            prompt="<image>\n?",
            images=(),
            truth=truth,
            cluster=f"{task}/{pair}",
            stratum=task,
            groups=(task,),
        )
        for task in mme.TASKS
        for pair in range(pairs)
        for truth in ("yes", "no")
    ]


def answers_to(items, seed: int, share_right: float = 0.0) -> list[Answer]:
    rng = random.Random(seed)
    texts = [item.truth if rng.random() < share_right else rng.choice(SAID) for item in items]
    return [Answer(id=item.id, text=text) for item, text in zip(items, texts, strict=True)]


def official_mme(items, answers) -> dict[str, float]:
    """The official tool's way: lines of a task in twos, written as it prints them."""
    scores = {}
    for task in mme.TASKS:
        lines = [
            (item.truth, answer.text.lower())
            for item, answer in zip(items, answers, strict=True)
            if item.stratum == task
        ]
        right = []
        for truth, said in lines:
            label = said if said in ("yes", "no") else said[:4]
            label = "yes" if "yes" in label else "no" if "no" in label else "other"
            right.append(label == truth)
        pairs = [one and other for one, other in zip(right[::2], right[1::2], strict=True)]
        scores[task] = 100 * sum(right) / len(right) + 100 * sum(pairs) / len(pairs)
    scores["perception"] = sum(scores[task] for task in mme.PERCEPTION)
    scores["cognition"] = sum(scores[task] for task in mme.COGNITION)
    return scores


def test_mme_is_the_sum_that_the_official_tool_prints():
    items = mme_items()
    answers = answers_to(items, seed=1, share_right=0.5)
    found = score(BENCHMARKS["mme"], items, answers, draws=200)
    expected = official_mme(items, answers)
    for name, value in expected.items():
        assert found["figures"][name]["value"] == pytest.approx(value)
    total = expected["perception"] + expected["cognition"]
    assert found["figures"]["total"]["value"] == pytest.approx(total)
    assert found["unparsed"] == sum(answer.text in ("The dog", "") for answer in answers)
    assert found["empty"] == sum(answer.text == "" for answer in answers)
    released = found["other_rules"]["ParGo release (20 characters)"]
    assert released == pytest.approx(total)  # none of these texts is longer than twenty


def test_pope_has_the_f1_of_the_official_program():
    items = [
        Item(
            id=f"{split}/{n}",
            prompt="",
            images=(),
            truth="yes" if n % 2 else "no",
            cluster=str(n // 2),
            groups=(split,),
        )
        for split in pope.SPLITS
        for n in range(60)
    ]
    answers = answers_to(items, seed=2, share_right=0.4)
    found = score(BENCHMARKS["pope"], items, answers, draws=200)["figures"]
    means = []
    for split in pope.SPLITS:
        pairs = [
            (int(pope.parse(answer.text) == "yes"), int(item.truth == "yes"))
            for item, answer in zip(items, answers, strict=True)
            if item.groups == (split,)
        ]
        tp, fp = pairs.count((1, 1)), pairs.count((1, 0))
        tn, fn = pairs.count((0, 0)), pairs.count((0, 1))
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        means.append(2 * precision * recall / (precision + recall))
        assert found[f"{split} precision"]["value"] == pytest.approx(100 * precision)
        assert found[f"{split} recall"]["value"] == pytest.approx(100 * recall)
        assert found[f"{split} F1"]["value"] == pytest.approx(100 * means[-1])
        assert found[f"{split} accuracy"]["value"] == pytest.approx(100 * (tp + tn) / len(pairs))
        assert found[f"{split} yes-ratio"]["value"] == pytest.approx(100 * (tp + fp) / len(pairs))
    assert found["mean F1"]["value"] == pytest.approx(100 * np.mean(means))


def test_a_question_of_mmbench_is_right_only_under_all_rotations(tmp_path):
    benchmark = BENCHMARKS["mmbench"]
    items = read_items(
        benchmark, layouts.mmbench(tmp_path), benchmark.prompts["llava"], subset=True
    )
    texts = {"0": "A", "1000000": "B", "7": "B", "1000007": "B"}
    found = score(benchmark, items, [Answer(id=i.id, text=texts[i.id]) for i in items], draws=50)
    values = {name: figure["value"] for name, figure in found["figures"].items()}
    assert values == {
        "overall": 50.0, "perception": 50.0, "shape": 100.0, "color": 0.0, "single rotations": 75.0
    }  # fmt: skip


def test_hallusion_counts_figures_and_questions_as_wholes(tmp_path):
    benchmark = BENCHMARKS["hallusion"]
    items = read_items(
        benchmark, layouts.hallusion(tmp_path), benchmark.prompts["official"], subset=True
    )
    # truths: figure 0: no, yes; figure 1: yes, no; the last one is answered wrongly
    texts = ["no", "yes", "yes", "yes"]
    answers = [Answer(id=i.id, text=text) for i, text in zip(items, texts, strict=True)]
    figures = score(benchmark, items, answers, draws=50)["figures"]
    # figure 0 is no image and does not count for fAcc
    assert {name: figure["value"] for name, figure in figures.items()} == {
        "aAcc": 75.0, "fAcc": 0.0, "qAcc": 50.0
    }  # fmt: skip


def test_cvbench_and_blink_average_parts_and_not_questions():
    groups = [("ADE20K", "Count")] * 3 + [("COCO", "Count")] + [("Omni3D", "Depth")]
    items = [
        Item(id=str(n), prompt="", images=(), truth="A", cluster=str(n), groups=group, stratum=group[0])
        for n, group in enumerate(groups)
    ]  # fmt: skip
    answers = [Answer(id=str(n), text="A" if n in (0, 4) else "B") for n in range(5)]
    found = score(BENCHMARKS["cvbench"], items, answers, draws=50)["figures"]
    assert found["overall"]["value"] == pytest.approx(100 * ((1 / 3 + 0) / 2 + 1) / 2)
    items = [
        dataclasses.replace(item, truth="(A)", groups=("Jigsaw" if n < 3 else "Counting",))
        for n, item in enumerate(items)
    ]
    found = score(BENCHMARKS["blink"], items, answers, draws=50)["figures"]
    assert found["overall"]["value"] == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)


def test_intervals_agree_with_simulation_and_grow_when_questions_share_images():
    """200 images: the interval is that of the normal approximation over images."""
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.7

    def interval(per_image: int) -> dict[str, float]:
        items = [
            Item(id=str(n), prompt="", images=(), truth="yes", cluster=str(n // per_image))
            for n in range(200)
        ]
        said = ["yes" if right[n // per_image] else "no" for n in range(200)]
        answers = [Answer(id=str(n), text=text) for n, text in enumerate(said)]
        return score(BENCHMARKS["scenes"], items, answers)["figures"]["overall"]

    one = interval(1)
    half = 1.96 * 100 * right.std() / 200**0.5
    # 2,000 draws leave the ends uncertain by about 4 % of the half width, and steps are 0.5
    assert one["high"] - one["value"] == pytest.approx(half, abs=0.15 * half)
    assert one["value"] - one["low"] == pytest.approx(half, abs=0.15 * half)
    four = interval(4)
    assert (four["high"] - four["low"]) / (one["high"] - one["low"]) == pytest.approx(2, abs=0.4)


def test_mme_has_the_noise_that_was_simulated():
    """A total of 1,900 or so has a sampling deviation of about 45 points at MME's own numbers."""
    numbers = dict.fromkeys(mme.TASKS, 30) | {
        "posters": 147, "celebrity": 170, "scene": 200, "landmark": 200, "artwork": 200, "OCR": 20,
        "commonsense_reasoning": 70, "numerical_calculation": 20, "text_translation": 20,
        "code_reasoning": 20,
    }  # fmt: skip
    items = [item for item in mme_items(200) if int(item.id.split("/")[1]) < numbers[item.stratum]]
    assert len(items) == 2374
    answers = answers_to(items, seed=4, share_right=0.75)
    total = score(BENCHMARKS["mme"], items, answers)["figures"]["total"]
    assert 1800 < total["value"] < 2300
    assert (total["high"] - total["low"]) / 2 / 1.96 == pytest.approx(45, abs=12)


def test_a_difference_on_the_same_questions_is_narrower_than_the_intervals():
    items = mme_items(20)
    weak = answers_to(items, seed=5, share_right=0.6)
    strong = [
        Answer(id=answer.id, text=item.truth if n % 20 == 0 else answer.text)
        for n, (item, answer) in enumerate(zip(items, weak, strict=True))
    ]
    benchmark = BENCHMARKS["mme"]
    own = score(benchmark, items, strong)["figures"]["total"]
    difference = compare(benchmark, items, strong, weak)["total"]
    assert difference["value"] > 0
    assert difference["low"] > 0
    assert difference["high"] - difference["low"] < 0.5 * (own["high"] - own["low"])
    none = compare(benchmark, items, weak, weak)["total"]
    assert (none["value"], none["low"], none["high"]) == (0.0, 0.0, 0.0)


def stored(folder, items, answers, name: str = "mme", **changes) -> None:
    """Answers in a folder, as the runner leaves them."""
    store = Store(folder / name)
    asked = {
        "prompt": {"name": "official"},
        "settings": {"images": "real"},
        "questions": digest(item_lines(items)),
        "number": len(items),
        "expected": [2374],
        "units": 1,
    }
    store.open(asked | changes, items)
    store.write(0, {"halved": 0}, answers)


def test_folders_are_scored_and_compared_without_the_files(tmp_path):
    items = mme_items(3)
    stored(tmp_path / "a", items, answers_to(items, seed=1, share_right=0.9))
    stored(tmp_path / "b", items, answers_to(items, seed=2))
    scores = score_folder(tmp_path / "a", tmp_path / "b")
    json.dumps(scores)
    assert scores["mme"]["difference"]["total"]["low"] > 0
    text = report(scores)
    assert "MME (mme), prompt official - PART OF IT, not comparable" in text
    assert "84 questions, 42 images or sets; unparsed" in text
    assert "yes-ratio" in text
    assert "points   difference +" in text.replace("  +", " +").replace("  +", " +")
    with pytest.raises(UserError, match="holds no answers"):
        score_folder(tmp_path / "c")


def test_other_questions_are_not_compared(tmp_path):
    items = mme_items(3)
    stored(tmp_path / "a", items, answers_to(items, seed=1))
    stored(tmp_path / "b", items[:-2], answers_to(items[:-2], seed=2))
    with pytest.raises(OtherAnswersError, match="asked 84 and 82 questions that are not the same"):
        score_folder(tmp_path / "a", tmp_path / "b")
    other = [Item(id="q", prompt="", images=(), truth="yes", cluster="c")]
    stored(tmp_path / "d", other, [Answer(id="q")], name="scenes", expected=[])
    with pytest.raises(UserError, match="have no benchmark in common"):
        score_folder(tmp_path / "a", tmp_path / "d")


def test_the_share_of_answers_within_rounding_is_told():
    items = mme_items(1)[:4]
    margins = [0.5, 1.0, 1.5, None]
    answers = [
        Answer(id=i.id, text="yes", margin=margin, cut=margin is None)
        for i, margin in zip(items, margins, strict=True)
    ]
    found = score(BENCHMARKS["mme"], items, answers, draws=20)
    assert found["close"] == pytest.approx(2 / 3)
    assert found["cut"] == 1
    assert found["yes"] == 1.0


def test_scene_questions_have_the_accuracy_of_the_report(tmp_path):
    """The demo's table and the benchmark's figures are one truth."""
    samples = list(read_samples(layouts.scenes(tmp_path) / "validation"))
    questions = questions_of(samples)
    texts = ["Red.", "no", "green", "Yes", "yellow", ""]
    items = scenes.items_of(samples, questions)
    answers = [Answer(id=item.id, text=text) for item, text in zip(items, texts, strict=True)]
    found = score(BENCHMARKS["scenes"], items, answers, draws=50)["figures"]
    expected = accuracy_table(questions, texts)
    assert found["overall"]["value"] == pytest.approx(100 * expected["overall"])
    for kind in ("colour", "existence"):
        assert found[kind]["value"] == pytest.approx(100 * expected["by_type"][kind])
