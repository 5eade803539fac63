"""Files for evaluation servers and official programs."""

from __future__ import annotations

import json

import official_layouts as layouts
import pytest

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS
from pargo_ds.evaluation.store import MissingAnswersError, Store, digest, item_lines
from pargo_ds.evaluation.submission import FORMS, write_submissions


def answered(out, name: str, text: str) -> list:
    """Every question answered with `text`; returns the questions."""
    benchmark = BENCHMARKS[name]
    prompt = next(iter(benchmark.prompts.values()))
    source = layouts.WRITERS[name](out.parent / f"{name}_files")
    items = read_items(benchmark, source, prompt, subset=True)
    store = Store(out / name)
    store.open({"questions": digest(item_lines(items)), "units": 1}, items)
    store.write(0, {}, [Answer(id=item.id, text=text) for item in items])
    return items


def test_vqa_answers_are_written_as_evalai_compares_them(tmp_path):
    answered(tmp_path / "out", "vqav2test", "The Two dogs.")
    (path,) = write_submissions(tmp_path / "out")
    assert path == tmp_path / "out/vqav2test/submission/results.json"
    assert json.loads(path.read_text()) == [
        {"question_id": number, "answer": "2 dogs"} for number in (0, 1000, 2000)
    ]


def test_mmvet_is_one_object_of_answers(tmp_path):
    answered(tmp_path / "out", "mmvet", "Ein Würfel\u2028hier")
    (path,) = write_submissions(tmp_path / "out")
    assert json.loads(path.read_text()) == dict.fromkeys(
        ["v1_0", "v1_1", "v1_2"], "Ein Würfel\u2028hier"
    )


def test_mmvp_has_the_lines_that_its_grader_reads(tmp_path):
    answered(tmp_path / "out", "mmvp", "on the left")
    (path,) = write_submissions(tmp_path / "out")
    first, second, *_ = map(json.loads, path.read_text().splitlines())
    assert first == {
        "question_id": 1, "prompt": "Where is it? (a) Left (b) Right", "answer": "(a)",
        "response": "on the left",
    }  # fmt: skip
    assert (second["question_id"], second["answer"]) == (2, "(b)")


def test_hallusion_has_the_official_entries_and_the_answer_in_each(tmp_path):
    answered(tmp_path / "out", "hallusion", "It is so.")
    (path,) = write_submissions(tmp_path / "out")
    official = json.loads((tmp_path / "hallusion_files/HallusionBench.json").read_text())
    written = json.loads(path.read_text())
    for entry, row in zip(written, official, strict=True):
        assert entry.pop("model_prediction") == "It is so."
        # The program opens no image, and reads no filename.
        assert entry == {key: value for key, value in row.items() if key != "filename"}


def test_gqa_has_the_keys_of_its_program(tmp_path):
    items = answered(tmp_path / "out", "gqa", "Red.")
    (path,) = write_submissions(tmp_path / "out")
    assert json.loads(path.read_text()) == [
        {"questionId": item.id, "prediction": "red"} for item in items
    ]


def test_mme_lines_are_what_its_program_splits_two_for_an_image(tmp_path):
    items = answered(tmp_path / "out", "mme", " Yes,\tit\nis ")
    for path in write_submissions(tmp_path / "out"):
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        own = [item for item in items if item.stratum == path.stem]
        assert len(rows) == len(own)
        for row, item in zip(rows, own, strict=True):
            image, question, truth, answer = row
            assert (question, truth, answer) == (
                item.meta["question"], item.truth.capitalize(), "Yes, it is",
            )  # fmt: skip
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            assert first[0] == second[0]


def test_every_form_is_of_a_benchmark_that_exists():
    assert set(FORMS) <= set(BENCHMARKS)


def test_missing_answers_and_folders_without_a_form_are_refused(tmp_path):
    answered(tmp_path / "out", "gqa", "red")
    (tmp_path / "out/gqa/units/00000.jsonl").unlink()
    with pytest.raises(MissingAnswersError):
        write_submissions(tmp_path / "out")
    answered(tmp_path / "pope", "pope", "yes")
    with pytest.raises(UserError, match="answers to none of vqav2"):
        write_submissions(tmp_path / "pope")
