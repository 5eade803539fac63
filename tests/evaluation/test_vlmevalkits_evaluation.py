"""VLMEvalKit's own evaluation of our prediction files: its figures where its rule is also ours.

It runs from the checkout that PARGO_VLMEVALKIT names; without it these tests are skipped. Scores
were compared with commit e8e78f05 of August 2026.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import official_layouts as layouts
import pytest
from tiny import ROOT, run_command

from pargo_ds.evaluation.benchmark import Answer, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS, mme
from pargo_ds.evaluation.score import score
from pargo_ds.evaluation.store import Store, digest, item_lines
from pargo_ds.evaluation.vlmevalkit import write_predictions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WORKER = ROOT / "tests/evaluation/vlmevalkit_worker.py"
YES_NO, CHOICE, COUNT = "ImageYORNDataset", "ImageMCQDataset", "CountBenchQA"
CLEAR = ("Yes", "No", "Yes, it is.", "No. It is not", "yes", "no.")
"""Answers that the rules of MME, POPE and VLMEvalKit read alike."""
ODD = (
    *CLEAR, "", "nan", "None", "N/A", "1", "3.0", "No, yes", "yes\r\nno", "\u2028yes", "yes-no", "not",
    '"Yes"', "=1+1", "=yes", "no\0", "\x07yes", " yes ", "No\tno", "\\n no", "yes\r",
)  # fmt: skip
LETTERS = ("A", "B", "C", "D")
ODD_CHOICES = (
    *LETTERS, "A.", "(B)", "C: red", "b", "red", "It is blue.", "red or blue", "", "None", "nan", "Z",
    "A B", "A\nB", "=A", '"C"', "D\r", "3", "1.0", "The answer is (A)", "The answer is a blue one",
    "The correct answer is **B**, as A and C and D are wrong", "Cannot determine the answer, B",
    "Option A, because it is what we see in the picture here",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "none of these colours")


def yes_no_row(index: Any, answer: str, **more: Any) -> dict[str, Any]:
    question = 'Is it "so"?\nPlease answer yes or no.'
    shown = layouts.base64_image(len(str(index)))
    return {"index": index, "image": shown, "question": question, "answer": answer, **more}


def choice_row(index: int, rng: random.Random, **more: Any) -> dict[str, Any]:
    options = rng.sample(COLOURS, 4)
    row = {"index": index, "question": "What\nis it?", **dict(zip(LETTERS, options, strict=True))}
    group = {"category": f"c{index % 3}", "l2_category": "l2", "image": layouts.base64_image(index)}
    return {**row, "answer": rng.choice(LETTERS), **group, **more}


def mme_rows() -> list[dict[str, Any]]:
    rows = []
    for task in mme.TASKS:
        for number in range(4):
            for answer in ("Yes", "No"):
                place = f"{task}/{number}.png"
                rows.append(yes_no_row(len(rows), answer, category=task, image_path=place))
    return rows


def pope_rows(rng: random.Random) -> list[dict[str, Any]]:
    splits = ("random", "random,adversarial", "popular,adversarial", "adversarial,popular,random")
    return [
        yes_no_row(number, rng.choice(("Yes", "No")), category=splits[number % 4])
        for number in range(80)
    ]


def hallusion_rows(rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for number in range(60):
        kind = "VS_chart" if number % 4 else "VD_figure"
        index = f"{kind}_1_{number // 6}_{number // 2 % 3}_{number % 2}"
        group = {"category": kind[:2], "l2-category": kind}
        rows.append(yes_no_row(index, rng.choice(("Yes", "No")), **group))
    return rows


def mmbench_rows(rng: random.Random) -> list[dict[str, Any]]:
    """Questions, two of three with a rotation that shows the same image."""
    rows = []
    for number in range(60):
        group = {"l2-category": "perception", "split": "dev", "hint": "Look." if number % 2 else ""}
        row = choice_row(number, rng, **group)
        rows.append(row)
        if number % 3:
            turned = {"A": row["B"], "B": row["A"], "index": number + 1_000_000}
            answer = {"A": "B", "B": "A"}.get(row["answer"], row["answer"])
            rows.append({**row, **turned, "answer": answer, "image": str(number)})
    return rows


def mmvp_rows(rng: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "index": number,
            "image": layouts.base64_image(number),
            "question": f"Where is number {number // 2}?",
            "A": "Left",
            "B": "Right",
            "answer": rng.choice("AB"),
        }
        for number in range(60)
    ]


def count_rows(rng: random.Random) -> list[dict[str, Any]]:
    shown = layouts.base64_image(0)
    row = {"image": shown, "question": "How many?"}
    return [{"index": number, **row, "answer": rng.randrange(2, 11)} for number in range(40)]


class Asked:
    """Tables with made answers, our prediction files and our scores; `jobs` is what to evaluate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[tuple[str, str, str]] = []
        self.ours: dict[str, dict[str, Any]] = {}

    def add(self, name: str, kind: str, data_set: str, rows: list, says: Any) -> None:
        """`says(row)` is the answer to a row of the table."""
        table = layouts.write_tsv(self.folder / "tables" / f"{data_set}.tsv", rows)
        benchmark = BENCHMARKS[name]
        prompt = "llava" if name == "seed" else next(iter(benchmark.prompts))
        items = read_items(benchmark, table, benchmark.prompts[prompt], subset=True)
        said = [says(row) for row in rows]
        if name == "pope":  # a row is a question of each of its splits
            said = [said[int(item.id.partition("/")[2])] for item in items]
        answers = [Answer(id=item.id, text=text) for item, text in zip(items, said, strict=True)]
        store = Store(self.folder / "out" / name)
        store.open(
            {"questions": digest(item_lines(items)), "units": 1, "prompt": {"name": prompt}}, items
        )
        store.write(0, {}, answers)
        (file,) = write_predictions(self.folder / "out", {name: table}, "my.model-1")
        self.jobs.append((kind, data_set, str(file)))
        self.ours[data_set] = score(benchmark, items, answers, draws=20)

    def figures(self, data_set: str) -> dict[str, float]:
        return {name: each["value"] for name, each in self.ours[data_set]["figures"].items()}


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Asked:
    rng = random.Random(0)
    asked = Asked(tmp_path_factory.mktemp("asked"))

    def odd(row: dict[str, Any]) -> str:
        """The truth, in one word or in many, or anything else."""
        others = ODD_CHOICES if row["answer"] in LETTERS else ODD
        sentence = f"The answer is {row['answer']}, and neither A nor B nor C nor D besides"
        return rng.choice([row["answer"], sentence, rng.choice(others)])

    def clear(row: dict[str, Any]) -> str:
        return rng.choice(LETTERS[:2] if "B" in row else CLEAR)

    asked.add("mme", YES_NO, "MME", mme_rows(), clear)
    asked.add("pope", YES_NO, "POPE", pope_rows(rng), clear)
    asked.add("hallusion", YES_NO, "HallusionBench", hallusion_rows(rng), odd)
    asked.add("mmbench", CHOICE, "MMBench_DEV_EN", mmbench_rows(rng), odd)
    for name, data_set in (
        ("mmstar", "MMStar"),
        ("scienceqa", "ScienceQA_TEST"),
        ("seed", "SEEDBench_IMG"),
        ("realworldqa", "RealWorldQA"),
    ):
        asked.add(name, CHOICE, data_set, [choice_row(n, rng) for n in range(40)], clear)
    asked.add("mmvp", CHOICE, "MMVP", mmvp_rows(rng), clear)
    counts = ("2", "3", "4", "10", "ten", "3.", "", "12", "1,000")
    asked.add("countbench", COUNT, "CountBenchQA", count_rows(rng), lambda row: rng.choice(counts))
    return asked


@pytest.fixture(scope="module")
def theirs(asked) -> dict[str, list[dict[str, Any]]]:
    """The rows of VLMEvalKit's table of each data set."""
    checkout = Path(os.environ.get("PARGO_VLMEVALKIT", "nowhere"))
    if not (checkout / "vlmeval").is_dir():
        pytest.skip("PARGO_VLMEVALKIT names no checkout of VLMEvalKit")
    pytest.importorskip("pandas")
    command = [sys.executable, str(WORKER), str(checkout), json.dumps(asked.jobs)]
    places = {"LMUData": str(asked.folder / "tables"), "HOME": str(asked.folder)}
    done = run_command(command, PRED_FORMAT="tsv", **places)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {job[1]: rows for job, rows in zip(asked.jobs, found, strict=True)}


def by_split(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row.pop("split"): row for row in rows}


def test_mme_of_clear_answers_is_the_official_score(asked, theirs):
    (found,) = theirs["MME"]
    ours = asked.figures("MME")
    assert found.pop("reasoning") == pytest.approx(ours["cognition"])
    assert set(found) == {"perception", *mme.TASKS}
    assert found == pytest.approx({name: ours[name] for name in found})


def test_pope_of_clear_answers_is_the_official_score_of_each_split(asked, theirs):
    found = by_split(theirs["POPE"])
    ours = asked.figures("POPE")
    for split in ("random", "popular", "adversarial"):
        names = {"Overall": "F1", "acc": "accuracy", "precision": "precision", "recall": "recall"}
        expected = {name: ours[f"{split} {own}"] for name, own in names.items()}
        assert found[split] == pytest.approx(expected)


def test_hallusion_of_odd_answers_is_ours(asked, theirs):
    found = by_split(theirs["HallusionBench"])
    assert found["Overall"] == pytest.approx(asked.figures("HallusionBench"))


def test_mmbench_of_odd_answers_is_our_rule_of_june_2026(asked, theirs):
    (found,) = theirs["MMBench_DEV_EN"]
    (since,) = asked.ours["MMBench_DEV_EN"]["other_rules"].values()
    assert 100 * found["Overall"] == pytest.approx(since)
    assert since != asked.figures("MMBench_DEV_EN")["overall"]  # the answers show the difference
    assert 100 * found["perception"] == pytest.approx(since)


@pytest.mark.parametrize("data_set", ["MMStar", "ScienceQA_TEST", "SEEDBench_IMG", "RealWorldQA"])
def test_plain_letters_are_scored_alike(asked, theirs, data_set):
    (found,) = theirs[data_set]
    assert 100 * found["Overall"] == pytest.approx(asked.figures(data_set)["overall"])


def test_mmvp_of_plain_letters_has_our_pairs_and_questions(asked, theirs):
    (found,) = theirs["MMVP"]
    ours = asked.figures("MMVP")
    assert 100 * found["Overall"] == pytest.approx(ours["pairs"])
    assert 100 * found["Average"] == pytest.approx(ours["questions"])


def test_counts_are_our_rule_of_digits_anywhere(asked, theirs):
    (found,) = theirs["CountBenchQA"]
    (anywhere,) = asked.ours["CountBenchQA"]["other_rules"].values()
    assert found == {"accuracy": pytest.approx(anywhere)}
