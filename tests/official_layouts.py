"""Tiny files in the layouts in which each benchmark is published, with right answers to them."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import COLOURS, draw


def image(path: Path, number: int) -> Path:
    """A drawn image; the ending decides its name only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw(COLOURS[number % 6], number % 9))
    return path


def base64_image(number: int) -> str:
    return base64.b64encode(draw(COLOURS[number % 6], number % 9)).decode()


def write_json(path: Path, body: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 2) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def hub_image(number: int) -> dict[str, Any]:
    """An image as the Hugging Face hub stores it."""
    return {"bytes": draw(COLOURS[number % 6], number % 9), "path": None}


def mme(folder: Path, pairs: int = 2) -> Path:
    """Two tasks in the two layouts of the release."""
    for number in range(pairs):
        lines = (
            f"Is it {COLOURS[number]}? Please answer yes or no.\tYes\n"
            "Is it orange? Please answer yes or no.\tNo\n"
        )
        image(folder / "color" / f"{number:04d}.png", number)
        (folder / "color" / f"{number:04d}.txt").write_text(lines)
        image(folder / "scene" / "images" / f"{number:04d}.jpg", number + 3)
        texts = folder / "scene" / "questions_answers_YN"
        texts.mkdir(parents=True, exist_ok=True)
        (texts / f"{number:04d}.txt").write_text(lines.replace("Is it", "Is this"))
    return folder


def pope(folder: Path) -> Path:
    for split in ("random", "popular", "adversarial"):
        rows = []
        for number in range(4):
            name = f"COCO_val2014_{number // 2:012d}.jpg"
            image(folder / "val2014" / name, number // 2)
            label = "yes" if number % 2 == 0 else "no"
            question = f"Is there a {split} square in the image?"
            rows.append(
                {"question_id": number + 1, "image": name, "text": question, "label": label}
            )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"coco_pope_{split}.json").write_text(text)
    return folder


def mmbench(folder: Path) -> Path:
    """Two questions with two rotations each; the second question's rotations share its image."""
    rows = []
    for index, rotation, truth in ((0, 0, "A"), (0, 1, "B"), (7, 0, "B"), (7, 1, "A")):
        options = ["red", "blue", "nan", "nan"] if rotation == 0 else ["blue", "red", "nan", "nan"]
        rows.append(
            {
                "index": index + rotation * 1_000_000,
                "question": "What colour\nis it?",
                "hint": "nan" if index else "Look at the square.",
                **dict(zip("ABCD", options, strict=True)),
                "answer": truth,
                "category": "color" if index else "shape",
                "image": base64_image(index) if rotation == 0 else str(index),
                "source": "made",
                "l2-category": "perception",
                "split": "dev",
            }
        )
    return write_tsv(folder / "MMBench_DEV_EN.tsv", rows)


def seed(folder: Path) -> Path:
    questions = []
    for number in range(3):
        image(folder / "SEED-Bench-image" / f"100{number}_200", number)
        questions.append(
            {
                "answer": "ABC"[number],
                **dict(
                    zip(
                        ("choice_a", "choice_b", "choice_c", "choice_d"),
                        ["red", "green", "blue", "no colour"],
                        strict=True,
                    )
                ),
                "data_id": f"100{number}_200",
                "data_type": "image",
                "question": "What colour is it?",
                "question_id": str(100 + number),
                "question_type_id": 1 + number % 2,
            }
        )
    questions.append({**questions[0], "data_type": "video", "question_id": "999"})
    body = {
        "questions": questions,
        "question_type": {"Scene Understanding": 1, "Instance Identity": 2},
    }
    write_json(folder / "SEED-Bench.json", body)
    return folder


def gqa(folder: Path) -> Path:
    questions = {}
    for number, (kind, answer) in enumerate(
        [("query", "red"), ("verify", "yes"), ("logical", "no")]
    ):
        image(folder / "images" / f"n{number // 2}.jpg", number // 2)
        questions[f"20{number}"] = {
            "question": "What is it?",
            "imageId": f"n{number // 2}",
            "answer": answer,
            "types": {"structural": kind, "semantic": "attr", "detailed": "x"},
        }
    write_json(folder / "testdev_balanced_questions.json", questions)
    return folder


def vqav2(folder: Path) -> Path:
    questions, annotations = [], []
    for number, people in enumerate([["yes"] * 10, ["two"] * 4 + ["2"] * 3 + ["3"] * 3]):
        image(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg", number)
        questions.append({"image_id": number, "question": "How?", "question_id": number * 1000})
        answers = [{"answer": one, "answer_id": place + 1} for place, one in enumerate(people)]
        annotations.append(
            {
                "question_id": number * 1000,
                "image_id": number,
                "question_type": "how",
                "answer_type": "yes/no" if number == 0 else "number",
                "answers": answers,
            }
        )
    write_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        {"data_subtype": "val2014", "questions": questions},
    )
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    return folder


def textvqa(folder: Path) -> Path:
    rows = []
    for number, people in enumerate([["STOP"] * 8 + ["stop sign"] * 2, ["5.3"] * 10]):
        image(folder / "train_images" / f"abc{number}.jpg", number)
        rows.append(
            {
                "question_id": 34602 + number,
                "question": "what does it say?",
                "image_id": f"abc{number}",
                "answers": people,
            }
        )
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": rows})
    return folder


def scienceqa(folder: Path) -> Path:
    problems = {}
    for number, shown in (("5", "image.png"), ("8", None), ("11", "image.png")):
        if shown:
            image(folder / "images" / "test" / number / shown, int(number))
        problems[number] = {
            "question": "Which one?",
            "choices": ["red", "green", "blue"],
            "answer": int(number) % 3,
            "hint": "" if shown else "It is written.",
            "image": shown,
            "subject": "natural science",
        }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": list(problems), "train": []})
    return folder


def hallusion(folder: Path) -> Path:
    rows = []
    for figure in ("0", "1"):
        for question in ("0", "1"):
            rows.append(
                {
                    "category": "VS",
                    "subcategory": "chart",
                    "visual_input": figure,
                    "set_id": "3",
                    "figure_id": figure,
                    "question_id": question,
                    "question": "Is it so?",
                    "gt_answer": str((int(figure) + int(question)) % 2),
                    "gt_answer_details": f"It is {figure} and {question}.",
                    "filename": None if figure == "0" else "./VS/chart/3_1.png",
                }
            )
    image(folder / "VS" / "chart" / "3_1.png", 1)
    write_json(folder / "HallusionBench.json", rows)
    return folder


def mmvp(folder: Path) -> Path:
    with_header = [["Index", "Question", "Options", "Correct Answer"]]
    for number in range(1, 5):
        image(folder / "MMVP Images" / f"{number}.jpg", number)
        truth = "(a)" if number % 2 else "(b)"
        with_header.append([str(number), "Where is it?", "(a) Left (b) Right", truth])
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(with_header)
    return folder


def vstar(folder: Path) -> Path:
    for part in ("direct_attributes", "relative_position"):
        for number in range(2):
            image(folder / part / f"sa_{number}.jpg", number)
            body = {"question": "What colour?", "options": ["It is red.", "It is a blue one."]}
            write_json(
                folder / part / f"sa_{number}.json", {**body, "bbox": [], "target_object": []}
            )
    return folder


def cvbench(folder: Path) -> Path:
    rows = []
    for number, (source, kind) in enumerate([("ADE20K", "2D"), ("COCO", "2D"), ("Omni3D", "3D")]):
        rows.append(
            {
                "idx": number,
                "type": kind,
                "task": "Count" if kind == "2D" else "Depth",
                "image": hub_image(number),
                "question": "How many?",
                "choices": ["0", "1"],
                "answer": "(B)",
                "filename": "x.png",
                "source": source,
                "prompt": "How many? Select from the following choices.\n(A) 0\n(B) 1",
            }
        )
    write_parquet(folder / "test_2d.parquet", rows[:2])
    write_parquet(folder / "test_3d.parquet", rows[2:])
    return folder


def realworldqa(folder: Path) -> Path:
    rows = [
        {"image": hub_image(n), "question": "Is it red? A. Yes B. No", "answer": answer}
        for n, answer in enumerate(["A", "Downhill", "3"])
    ]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    return folder


def countbench(folder: Path) -> Path:
    rows = [
        {"image": hub_image(n), "text": "Squares", "question": "How many?", "number": 2 + n}
        for n in range(3)
    ]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows)
    return folder


def blink(folder: Path) -> Path:
    for task, shown in (("Counting", 1), ("Jigsaw", 3)):
        rows = []
        for number in range(2):
            images = {
                f"image_{place + 1}": hub_image(number + place) if place < shown else None
                for place in range(4)
            }
            rows.append(
                {
                    "idx": f"val_{task}_{number + 1}",
                    "question": "Which?",
                    "sub_task": task,
                    **images,
                    "choices": ["the first", "the second"],
                    "answer": "(B)",
                    "prompt": "Which? Select from (A) or (B).",
                }
            )
        write_parquet(folder / task / "val-00000-of-00001.parquet", rows)
    return folder


def mmstar(folder: Path) -> Path:
    rows = [
        {
            "index": number,
            "question": "What is it?\nOptions: A: red, B: green, C: blue, D: black",
            "image": draw(COLOURS[number], number),
            "answer": "ABC"[number],
            "category": "math" if number else "coarse perception",
            "l2_category": "geometry" if number else "image emotion",
            "meta_info": {"source": "made"},
        }
        for number in range(3)
    ]
    write_parquet(folder / "mmstar.parquet", rows)
    return folder


def mmvet(folder: Path) -> Path:
    body = {}
    for number, truth in enumerate(["red<OR>a red square", "-1<AND>-5", "two"]):
        image(folder / "images" / f"v1_{number}.png", number)
        capability = ["rec", "spat"] if number else ["ocr"]
        entry = {"imagename": f"v1_{number}.png", "question": f"What is {number}?"}
        body[f"v1_{number}"] = {**entry, "answer": truth, "capability": capability}
    write_json(folder / "mm-vet.json", body)
    return folder


def vqav2test(folder: Path) -> Path:
    questions = []
    for number in range(3):
        image(folder / "test2015" / f"COCO_test2015_{number:012d}.jpg", number)
        questions.append({"image_id": number, "question": "How?", "question_id": number * 1000})
    write_json(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    return folder


def refcoco(folder: Path) -> Path:
    """Two splits; the drawn images are squares of 64 pixels."""
    for split, numbers in (("refcoco_val", (0, 1)), ("refcoco+_testA", (1, 2))):
        rows = []
        for number in numbers:
            name = f"COCO_train2014_{number:012d}.jpg"
            image(folder / "train2014" / name, number)
            box = [8.0 * number, 16.0, 8.0 * number + 32.0, 48.0]
            shown = {"image": f"data/coco/train2014/{name}", "width": 64, "height": 64}
            rows.append({**shown, "sent": "the square", "bbox": box, "question_id": number})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


def scenes(folder: Path) -> Path:
    from pargo_ds.data.shards.mds import write_shards
    from pargo_ds.data.shards.schema import Sample

    samples = []
    for number in range(3):
        asked = [
            {
                "question": "What colour?",
                "answer": COLOURS[number],
                "type": "colour",
                "size": "small",
            },
            {"question": "Is it?", "answer": "yes", "type": "existence", "size": "scene"},
        ]
        meta = {"questions": asked}
        samples.append(Sample(id=f"s{number}", images=[draw(COLOURS[number], number)], meta=meta))
    write_shards(samples, folder / "validation")
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    writer.__name__: writer
    for writer in (
        mme, pope, mmbench, seed, gqa, vqav2, textvqa, scienceqa, hallusion, mmvp, vstar, cvbench,
        realworldqa, countbench, blink, mmstar, mmvet, vqav2test, refcoco, scenes,
    )
}  # fmt: skip
NUMBERS = {
    "mme": 8, "pope": 12, "mmbench": 4, "seed": 3, "gqa": 3, "vqav2": 2, "textvqa": 2,
    "scienceqa": 3, "hallusion": 4, "mmvp": 4, "vstar": 4, "cvbench": 3, "realworldqa": 3,
    "countbench": 3, "blink": 4, "mmstar": 3, "mmvet": 3, "vqav2test": 3, "refcoco": 4, "scenes": 6,
}  # fmt: skip
