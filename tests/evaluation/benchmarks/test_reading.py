"""Every benchmark is read from its official layout, and no fault of the files is passed over."""

from __future__ import annotations

import io
import json
import shutil

import official_layouts as layouts
import pytest
from PIL import Image
from tiny import COLOURS

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, Prompt, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS, benchmark_named
from pargo_ds.evaluation.benchmarks.files import read_tsv
from pargo_ds.evaluation.score import score


def read(name: str, source, prompt: str | None = None) -> list:
    benchmark = BENCHMARKS[name]
    chosen = benchmark.prompts[prompt or next(iter(benchmark.prompts))]
    return read_items(benchmark, source, chosen, subset=True)


def right_answer(benchmark, item) -> Answer:
    """What a model that knows the truth would say."""
    if next(iter(benchmark.prompts.values())).likelihood:
        truth = item.truth if item.truth in item.options else item.options["ABCD".index(item.truth)]
        losses = tuple((1.0 if option == truth else 9.0, 1) for option in item.options)
        return Answer(id=item.id, losses=losses)
    if benchmark.name == "refcoco":
        return Answer(id=item.id, text=str(item.truth))
    truth = max(item.truth, key=item.truth.count) if isinstance(item.truth, list) else item.truth
    return Answer(id=item.id, text=truth)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_official_files_are_read(name, tmp_path):
    items = read(name, layouts.WRITERS[name](tmp_path / "files"))
    assert len(items) == layouts.NUMBERS[name]
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert item.prompt.count("<image>") == len(item.images)
        assert item.cluster
        for image in item.images:
            data = image.read()
            assert Image.open(io.BytesIO(data)).size == (64, 64)
    json.dumps([item.truth for item in items])


@pytest.mark.parametrize(
    "name", [name for name in BENCHMARKS if BENCHMARKS[name].needs not in ("judge", "server")]
)
def test_right_answers_get_all_points_and_no_answer_gets_none(name, tmp_path):
    benchmark = BENCHMARKS[name]
    items = read(name, layouts.WRITERS[name](tmp_path / "files"))
    best = score(benchmark, items, [right_answer(benchmark, item) for item in items], draws=20)
    whole = {"mme": 400.0}.get(name, 100.0)  # two of MME's tasks, 200 each
    # VQA: four of ten people said it, so each one left out sees at least three others
    assert best["figures"][benchmark.headline]["value"] == pytest.approx(whole)
    assert best["unparsed"] == 0
    if name in ("seed", "vstar"):
        return  # a loss always says something
    none = score(benchmark, items, [Answer(id=item.id) for item in items], draws=20)
    assert none["empty"] == len(items)
    # POPE's official rule takes an empty answer for a yes: half of them are right
    assert none["figures"][benchmark.headline]["value"] == pytest.approx(
        {"pope": 200 / 3}.get(name, 0.0)
    )
    assert none["unparsed"] == len(items)


def test_the_files_of_other_programs_are_read_too(tmp_path):
    """VLMEvalKit's TSV of MME and POPE, and the hub's Parquet of MME."""
    rows = [
        {
            "index": number,
            "image": layouts.base64_image(number // 2) if number % 2 == 0 else str(number - 1),
            "question": "Is it red? Please answer yes or no.",
            "answer": "No" if number % 2 else "Yes",
            "category": "color",
            "image_path": f"color/{number // 2}.png",
        }
        for number in range(4)
    ]
    items = read("mme", layouts.write_tsv(tmp_path / "MME.tsv", rows))
    assert [item.id for item in items] == ["color/0/1", "color/0/2", "color/1/1", "color/1/2"]
    assert [item.truth for item in items] == ["yes", "no", "yes", "no"]
    assert items[0].images == items[1].images != items[2].images
    assert items[1].images[0].read() == layouts.draw(COLOURS[0], 0)

    rows = [row | {"category": "random,adversarial"} for row in rows]
    items = read("pope", layouts.write_tsv(tmp_path / "POPE.tsv", rows))
    assert [item.groups for item in items[:2]] == [("random",), ("adversarial",)]
    assert len(items) == 8

    rows = [
        {
            "question_id": f"color/{number // 2}.png",
            "image": layouts.hub_image(number // 2),
            "question": "Is it red?",
            "answer": "No" if number % 2 else "Yes",
            "category": "color",
        }
        for number in range(6)
    ]
    layouts.write_parquet(tmp_path / "hub" / "data" / "test-0.parquet", rows)
    items = read("mme", tmp_path / "hub")
    assert [item.cluster for item in items[::2]] == ["color/0", "color/1", "color/2"]
    assert items[5].images[0].read() == layouts.draw(COLOURS[2], 2)


def test_a_tsv_may_have_line_breaks_in_its_cells(tmp_path):
    rows = read_tsv(layouts.mmbench(tmp_path))
    assert [row.text("question") for row in rows] == ["What colour\nis it?"] * 4
    assert [row.lettered() for row in rows[:2]] == [("red", "blue"), ("blue", "red")]
    assert rows[3].image().read() == layouts.draw(COLOURS[1], 7)


def test_prompts_are_those_of_the_table(tmp_path):
    folder = layouts.mme(tmp_path)
    asked = {name: read("mme", folder, name)[0].prompt for name in BENCHMARKS["mme"].prompts}
    assert asked == {
        "official": "<image>\nIs it red? Please answer yes or no.",
        "llava": "<image>\nIs it red?\nAnswer the question using a single word or phrase.",
        "authors": "<image>\nIs it red? Please answer yes or no.\n"
        "Answer the question using a single word(Yes or No)",
    }
    with_hint = read("mmbench", layouts.mmbench(tmp_path / "mmb"))[0]
    assert with_hint.prompt == (
        "<image>\nLook at the square.\nWhat colour\nis it?\nA. red\nB. blue\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert Prompt().fill("a {b} c", images=0) == "a {b} c"


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("mme", "color/0001.png"),
        ("pope", "val2014/COCO_val2014_000000000001.jpg"),
        ("seed", "SEED-Bench-image/1001_200"),
        ("gqa", "images/n1.jpg"),
        ("vqav2", "val2014/COCO_val2014_000000000001.jpg"),
        ("textvqa", "train_images/abc1.jpg"),
        ("scienceqa", "images/test/11/image.png"),
        ("hallusion", "VS/chart/3_1.png"),
        ("mmvp", "MMVP Images/2.jpg"),
        ("vstar", "relative_position/sa_1.jpg"),
    ],
)
def test_a_missing_image_is_an_error_that_names_it(name, lost, tmp_path):
    folder = layouts.WRITERS[name](tmp_path)
    (folder / lost).unlink()
    with pytest.raises(UserError, match=lost.split("/")[-1].split(".")[0]):
        read(name, folder)


def test_an_image_of_mme_has_two_questions(tmp_path):
    folder = layouts.mme(tmp_path)
    text = folder / "color" / "0000.txt"
    text.write_text(text.read_text() + "And now? Please answer yes or no.\tYes\n")
    with pytest.raises(UserError, match=r"1 images do not have two questions: color/0000 \(3\)"):
        read("mme", folder)
    text.unlink()
    with pytest.raises(UserError, match="1 images have no .txt with questions: 0000.png"):
        read("mme", folder)


def test_another_number_of_questions_is_an_error_unless_it_is_meant(tmp_path):
    benchmark, folder = BENCHMARKS["mme"], layouts.mme(tmp_path)
    prompt = benchmark.prompts["official"]
    with pytest.raises(UserError, match=r"holds 8 questions; MME has 2,374.*--subset"):
        read_items(benchmark, folder, prompt, subset=False)
    assert len(read_items(benchmark, folder, prompt, subset=True)) == 8


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("mme", lambda f: (f / "color" / "0000.txt").write_text("Is it?\tMaybe\n"), "line 1"),
        ("pope", lambda f: (f / "coco_pope_popular.json").unlink(), "popular.json is missing"),
        ("pope", lambda f: (f / "coco_pope_popular.json").write_text("{"), "line 1 is no JSON"),
        ("pope", lambda f: shutil.rmtree(f / "val2014"), "none of the folders val2014"),
        ("seed", lambda f: (f / "SEED-Bench.json").write_text("{"), "is no JSON"),
        ("vstar", lambda f: (f / "direct_attributes" / "sa_0.json").unlink(), "lack the image or"),
        ("blink", shutil.rmtree, "does not exist"),
    ],
)
def test_faulty_files_are_named(name, harm, said, tmp_path):
    folder = layouts.WRITERS[name](tmp_path / "files")
    harm(folder)
    with pytest.raises(UserError, match=said):
        read(name, folder)


def test_rows_without_truth_or_with_unknown_images_are_named(tmp_path):
    rows = [
        {"index": 0, "question": "q", "A": "red", "B": "blue", "answer": "C", "image": "17"},
    ]
    path = layouts.write_tsv(tmp_path / "one.tsv", rows)
    with pytest.raises(UserError, match="row 1 shows the image of row '17', which is not"):
        read("mmbench", path)
    path = layouts.write_tsv(path, [rows[0] | {"image": layouts.base64_image(1)}])
    with pytest.raises(UserError, match="row 1: the answer 'C' is none of 2 options"):
        read("mmbench", path)
    path = layouts.write_tsv(path, [rows[0] | {"image": layouts.base64_image(1), "answer": ""}])
    with pytest.raises(UserError, match="row 1 has no 'answer'; it has index, question"):
        read("mmbench", path)


def test_an_unknown_benchmark_is_named():
    with pytest.raises(UserError, match="no benchmark is named 'mmmee': there are mme, pope"):
        benchmark_named("mmmee")


def test_the_copy_of_mmvp_is_named(tmp_path):
    with_many = [["Index", "Question", "Options", "Correct Answer"]]
    for number in range(1, 101):
        layouts.image(tmp_path / "MMVP Images" / f"{number}.jpg", number)
        with_many.append([str(number), "Where?", "(a) Left (b) Right", "(b)"])
    lines = "\n".join(",".join(row) for row in with_many)
    (tmp_path / "Questions.csv").write_text(lines)
    assert {item.groups for item in read("mmvp", tmp_path)} == {("corrected truths",)}


@pytest.mark.parametrize(
    ("name", "cells", "prompt", "truth"),
    [
        (
            "seed",
            {
                "A": "red",
                "B": "blue",
                "C": "green",
                "D": "nan",
                "answer": "B",
                "category": "Colour",
            },
            "<image>\nq?\nA. red\nB. blue\nC. green\n"
            "Answer with the option's letter from the given choices directly.",
            "B",
        ),
        (
            "scienceqa",
            {"hint": "See.", "A": "red", "B": "blue", "answer": "B", "category": "c"},
            "<image>\nContext: See.\nq?\nA. red\nB. blue\n"
            "Answer with the option's letter from the given choices directly.",
            "B",
        ),
        ("hallusion", {"index": "VD_figure_1_2_3_4", "answer": "No"}, "<image>\nq?", "no"),
        (
            "mmvp",
            {"A": "Left", "B": "Right", "answer": "A"},
            "<image>\nq? (a) Left (b) Right",
            "(a)",
        ),
        ("realworldqa", {"A": "Yes", "B": "No", "answer": "B"}, "<image>\nq?\nA. Yes\nB. No", "B"),
        (
            "countbench",
            {"answer": 7},
            "<image>\nq?\nAnswer the question using a single word or phrase.",
            "7",
        ),
        (
            "mmstar",
            {"A": "red", "B": "blue", "answer": "A", "category": "math", "l2_category": "geometry"},
            "<image>\nq?\nA. red\nB. blue\n"
            "Answer with the option's letter from the given choices directly.",
            "A",
        ),
    ],
)
def test_tables_of_vlmevalkit_are_read(name, cells, prompt, truth, tmp_path):
    rows = [
        {"index": number, "image": layouts.base64_image(number), "question": "q?"} | cells
        for number in range(2)
    ]
    if name == "hallusion":
        rows[1]["index"] = "VD_figure_1_2_3_5"
    table = layouts.write_tsv(tmp_path / "table.tsv", rows)
    first, second = read(name, table, "llava" if name == "seed" else None)
    assert (first.prompt, first.truth) == (prompt, truth)
    assert second.images[0].read() == layouts.draw(COLOURS[1], 1)
    if name == "hallusion":
        assert (first.cluster, first.id) == ("VD/figure/2", "VD_figure_2_3_4")


def test_textvqa_of_llava_has_the_ocr_tokens_of_its_file(tmp_path):
    source = layouts.textvqa(tmp_path)
    plain = read("textvqa", source, "official")
    assert plain[0].prompt == (
        "<image>\nwhat does it say?\nAnswer the question using a single word or phrase."
    )
    with pytest.raises(UserError, match="has neither llava_textvqa_val_v051_ocr.jsonl nor"):
        read("textvqa", source, "llava")
    last = "Answer the question using a single word or phrase."
    texts = [
        f"What does it say?\nReference OCR token: STOP, 5\n{last}",
        f"what does it say?\n{last}",
    ]
    rows = [
        {"question_id": f"abc{n}", "image": f"abc{n}.jpg", "text": text, "category": "default"}
        for n, text in enumerate(texts)
    ]
    path = source / "llava_textvqa_val_v051_ocr.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read("textvqa", source, "llava")
    assert first.prompt == f"<image>\nwhat does it say?\nReference OCR token: STOP, 5\n{last}"
    assert second.prompt == plain[1].prompt  # nothing was read in that image
    assert [item.truth for item in (first, second)] == [item.truth for item in plain]
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="no OCR tokens for the question 34603 about abc1"):
        read("textvqa", source, "llava")
    path.unlink()
    rosetta = [
        {"image_id": f"abc{n}", "ocr_tokens": ["a", "b,c"], "ocr_info": []} for n in range(2)
    ]
    layouts.write_json(source / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": rosetta})
    assert "\nReference OCR token: a, b,c\nAnswer" in read("textvqa", source, "llava")[1].prompt


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": [8, 16, 8, 48]}, "none of x1, y1, x2, y2 in pixels of 64 x 64"),
        ({"bbox": [8, 16, 32, 90]}, "none of x1, y1, x2, y2"),
        ({"bbox": "8"}, "expected four numbers"),
        ({"image": "COCO_train2014_000000000009.jpg"}, "1 images are missing"),
        ({"width": None}, "has no 'width'"),
    ],
)
def test_faults_of_refcocos_files_are_named(change, said, tmp_path):
    source = layouts.refcoco(tmp_path)
    path = source / "refcoco_val.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    path.write_text(json.dumps(first | change) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(UserError, match=said):
        read("refcoco", source)


def test_refcocos_splits_have_their_names_and_the_pickles_are_not_opened(tmp_path):
    source = layouts.refcoco(tmp_path)
    assert len(read("refcoco", source / "refcoco_val.jsonl")) == 2
    (source / "refcoco_val.jsonl").rename(source / "refcoco_mine.jsonl")
    with pytest.raises(
        UserError, match=r"has refcoco_mine.jsonl; expected files named refcoco_val"
    ):
        read("refcoco", source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no refcoco\*.jsonl.*pickles .* are not opened"):
        read("refcoco", tmp_path / "empty")
