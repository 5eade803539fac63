"""tools/check_published_answers.py on made files in the published forms."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
from tiny import ROOT


@pytest.fixture
def check(capsys, monkeypatch):
    """Run the command on a folder; returns (exit status, stdout, stderr)."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("check_published_answers")

    def run(folder: Path) -> tuple[int, str, str]:
        status = tool.main([str(folder)])
        return status, *capsys.readouterr()

    return run


def line_of(printed: str, name: str) -> list[str]:
    """The columns of a file's line: questions, unread, otherwise, here, published, difference."""
    (line,) = (line for line in printed.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


def write_seed(folder: Path, right: int, of: int = 1000) -> None:
    """Lines with a comma at their end, the last one too, and questions about videos, all wrong."""
    rows = [
        {"question_id": str(n), "prediction": "AB"[n >= right], "gt_answer": "A"} for n in range(of)
    ]
    rows += [{"question_id": f"v{n}", "prediction": "C", "gt_answer": "A"} for n in range(9)]
    path = folder / "evaluate_result/SEED-Bench-1/GPT-4V.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + ",\n" for row in rows))


def write_scienceqa(folder: Path, texts: list[str], read: list[int], correct: int) -> None:
    numbered = {str(n): text for n, text in enumerate(texts)}
    results = dict(zip(numbered, read, strict=True))
    share = {"acc": 100 * correct / len(texts), "correct": correct, "count": len(texts)}
    body = {**share, "results": results, "outputs": numbered}
    (folder / "test_sqa_llava_13b_v0.json").write_text(json.dumps(body))


def write_blink(folder: Path, right: dict[str, int], model: str = "GPT4V") -> None:
    """Tasks of 1,000 questions with two options; one third of the answers GPT-3.5 had to read."""
    (folder / "saved_outputs" / model).mkdir(parents=True)
    for task, number in right.items():
        rows = []
        for n in range(1000):
            letter = "(B)" if n < number else "(A)"
            said = ["It is the left one.", f"So {letter} it is", letter[1]][n % 3]
            texts = {"full_prediction": said, "prediction": letter}
            rows.append({"idx": f"val_{task}_{n}", "answer": "(B)", **texts})
        body = {"val": rows, "test": [{"idx": f"test_{task}_1", "answer": "hidden"}]}
        (folder / "saved_outputs" / model / f"{task}.json").write_text(json.dumps(body))


def test_files_with_the_published_scores_agree(check, tmp_path):
    write_seed(tmp_path, right=691)
    forms = ["B", "B. A dog", "First this.\nThe answer is B.", "I do not know"]
    write_scienceqa(tmp_path, [forms[n % 4] for n in range(1000)], [1, 1, 1, -1] * 250, correct=909)
    write_blink(tmp_path, {"Counting": 411, "IQ_Test": 611})
    status, printed, error = check(tmp_path)
    assert status == 0, printed + error
    assert line_of(printed, "SEED-Bench-1/GPT-4V.json") == [
        "1,000",
        "0",
        "-",
        "69.10",
        "69.1",
        "+0.00",
    ]
    science = line_of(printed, "test_sqa_llava_13b_v0.json")
    assert science == ["1,000", "250", "0", "90.90", "90.9", "+0.00"]
    # The mean of the tasks' 41.1 and 61.1; 334 answers of each are "It is the left one."
    blink = line_of(printed, "saved_outputs/GPT4V")
    assert blink == ["2,000", "668", "0", "51.10", "51.1", "+0.00"]


def test_a_score_that_differs_by_more_than_rounding_is_told(check, tmp_path):
    write_seed(tmp_path, right=692)
    status, printed, error = check(tmp_path)
    assert status == 1
    assert line_of(printed, "SEED-Bench-1/GPT-4V.json")[-2:] == ["+0.10", "DIFFERS"]


def test_an_answer_that_is_read_otherwise_counts_against_agreement(check, tmp_path):
    texts = ["B"] * 999 + ["The answer is A. No: The answer is B."]
    write_scienceqa(tmp_path, texts, read=[1] * 1000, correct=909)
    status, printed, error = check(tmp_path)
    assert status == 1
    science = line_of(printed, "test_sqa_llava_13b_v0.json")
    assert science == ["1,000", "1", "1", "90.80", "90.9", "-0.10", "DIFFERS"]


def test_known_differences_do_not_end_in_1_and_say_why(check, tmp_path):
    write_blink(tmp_path, {"Counting": 440, "IQ_Test": 441}, model="OPUS")
    status, printed, error = check(tmp_path)
    assert status == 0, printed
    blink = line_of(printed, "saved_outputs/OPUS")
    assert blink[3:7] == ["44.05", "44.1", "-0.05", "known:"]


def test_mmstars_sheet_is_read(check, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["index", "question", "answer", "prediction"])
    for number in range(1000):
        said = (
            "b" if number >= 521 else ["A", "(A) a dog", "Option A", "The answer is a"][number % 4]
        )
        book.active.append([number, "What is it?", "A", said])
    book.save(tmp_path / "llava_next_yi_34b_MMStar.xlsx")
    status, printed, error = check(tmp_path)
    assert status == 0, printed + error
    assert line_of(printed, "llava_next_yi_34b_MMStar.xlsx")[3:] == ["52.10", "52.1", "+0.00"]


def broken_seed(folder: Path) -> None:
    write_seed(folder, right=1, of=3)
    path = folder / "evaluate_result/SEED-Bench-1/GPT-4V.json"
    path.write_text(path.read_text() + '{"question_id": \n')


def without_outputs(folder: Path) -> None:
    (folder / "test_sqa_llava_13b_v0.json").write_text('{"acc": 90.9}')


def no_sheet(folder: Path) -> None:
    (folder / "llava_next_yi_34b_MMStar.xlsx").write_text("index,answer")


def other_files(folder: Path) -> None:
    (folder / "my_answers.json").write_text("{}")


SHEET = "is no sheet that openpyxl reads"
if importlib.util.find_spec("openpyxl") is None:
    SHEET = "files need openpyxl: pip install openpyxl"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (broken_seed, "GPT-4V.json, line 13 is no JSON"),
        (without_outputs, "has no 'outputs' where the published file has it"),
        (no_sheet, SHEET),
        (other_files, "holds none of the files whose scores are known: llava_next_yi_34b_MMStar.xlsx"),
        (Path.rmdir, "is no folder"),
    ],
)  # fmt: skip
def test_faults_name_the_file_and_what_to_do(check, tmp_path, write, said):
    folder = tmp_path / "published"
    folder.mkdir()
    write(folder)
    status, printed, error = check(folder)
    assert status == 2
    assert said in error
