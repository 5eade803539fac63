"""MME: two yes/no questions an image, 14 tasks, accuracy and accuracy+ (both right), 0 to 2800.

Rule: calculation.py of the MME release. Lower case; exactly yes or no, else looked for in the first
four characters, yes before no; anything else is "other", which is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    ImageRef,
    Item,
    Judgement,
    Mark,
    Prompt,
    Totals,
    accuracy_marks,
    all_right_marks,
    images_of,
)
from pargo_ds.evaluation.benchmarks.files import (
    IMAGE_ENDINGS,
    check_images,
    image_file,
    is_table,
    read_rows,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene",
              "landmark", "artwork", "OCR")  # fmt: skip
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
TASKS = PERCEPTION + COGNITION
OFFICIAL, AUTHORS = 4, 20
"""Characters in which yes and no are looked for: MME's tool, and the copy in ParGo's release."""


def parse(answer: str, characters: int = OFFICIAL) -> str | None:
    """Return "yes", "no", or None for what the official tool calls other."""
    lowered = answer.lower()
    if lowered in ("yes", "no"):
        return lowered
    start = lowered[:characters]
    for word in ("yes", "no"):
        if word in start:
            return word
    return None


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge by the official rule."""
    said = parse(answer.text)
    return Judgement(said, float(said == item.truth))


def judge_as_released(item: Item, answer: Answer) -> Judgement:
    """Judge by the rule of ParGo's release, by which its authors' figures came about."""
    said = parse(answer.text, AUTHORS)
    return Judgement(said, float(said == item.truth))


def marks(items: Sequence[Item], judged: Sequence[Judgement]) -> Iterable[Mark]:
    """Yield the marks of each task's questions (TASK) and of its pairs (TASK+)."""
    for mark in accuracy_marks(items, judged):
        if mark.name != "overall":
            yield mark
    yield from all_right_marks(
        items, judged, lambda item: item.cluster, lambda item: [f"{item.stratum}+"]
    )


def figures(totals: Totals) -> dict[str, np.ndarray]:
    """Return total, perception, cognition and the tasks' scores, each 100 accuracy + 100 accuracy+."""
    tasks = [task for task in TASKS if task in totals.names]
    scores = {task: 100 * (totals.mean(task) + totals.mean(f"{task}+")) for task in tasks}
    sums: dict[str, np.ndarray] = {}
    for part, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
        own = [scores[task] for task in names if task in scores]
        if own:
            sums[part] = np.sum(own, axis=0)
    accuracy = {f"{task} accuracy": 100 * totals.mean(task) for task in tasks}
    return {"total": np.sum(list(sums.values()), axis=0), **sums, **scores, **accuracy}


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read the release's folder, VLMEvalKit's TSV, or Parquet with question_id, category, image.

    Raises SourceError for an image without exactly two questions or for a missing image.
    """
    read_from = _from_folder
    if is_table(source):
        read_from = _from_table
    items = read_from(source, prompt)
    pairs: dict[str, list[str]] = {}
    for item in items:
        pairs.setdefault(item.cluster, []).append(item.truth)
    odd = [f"{name} ({len(truths)})" for name, truths in pairs.items() if len(truths) != 2]
    if odd:
        raise SourceError(
            f"{source}: {len(odd)} images do not have two questions: {', '.join(odd[:3])}; "
            "accuracy+ would be wrong. Copy the files anew"
        )
    return items


def _item(
    task: str, name: str, number: int, question: str, truth: str, image: ImageRef, prompt: Prompt
) -> Item:
    return Item(
        id=f"{task}/{name}/{number}",
        prompt=prompt.fill(question),
        images=(image,),
        truth=truth,
        cluster=f"{task}/{name}",
        stratum=task,
        groups=(task,),
        meta={"question": question},
    )


def _from_folder(source: Path, prompt: Prompt) -> list[Item]:
    tasks = [task for task in TASKS if (source / task).is_dir()]
    if not tasks:
        raise SourceError(
            f"{source} has none of MME's folders ({', '.join(TASKS)}); expected the release, in "
            "which TASK/ holds images and a .txt for each, or TASK/images and questions_answers_YN"
        )
    items = []
    for task in tasks:
        folder = source / task
        texts, images = folder / "questions_answers_YN", folder / "images"
        if not texts.is_dir():
            texts = images = folder
        for path in sorted(texts.glob("*.txt")):
            items += _of_text(task, path, images, source, prompt)
        _check_every_image(folder, images, {item.cluster for item in items}, task)
    check_images(images_of(items), source)
    return items


def _of_text(task: str, path: Path, images: Path, source: Path, prompt: Prompt) -> list[Item]:
    found = [images / f"{path.stem}{end}" for end in IMAGE_ENDINGS]
    there = [file for file in found if file.is_file()]
    image = image_file([*there, *found][0], source)
    items = []
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(filter(str.strip, lines), start=1):
        question, tab, truth = line.rpartition("\t")
        truth = truth.strip().lower()
        if not tab or truth not in ("yes", "no"):
            raise SourceError(f"{path}, line {number}: expected QUESTION<tab>Yes or No: {line!r}")
        items.append(_item(task, path.stem, number, question.strip(), truth, image, prompt))
    return items


def _check_every_image(folder: Path, images: Path, asked: set[str], task: str) -> None:
    files = [path for path in images.iterdir() if path.suffix.lower() in IMAGE_ENDINGS]
    without = sorted(path.name for path in files if f"{task}/{path.stem}" not in asked)
    if without:
        raise SourceError(
            f"{folder}: {len(without)} images have no .txt with questions: {', '.join(without[:3])}"
        )


def _from_table(source: Path, prompt: Prompt) -> list[Item]:
    items: list[Item] = []
    numbers: dict[str, int] = {}
    for row in read_rows(source):
        task = row.text("category")
        if task not in TASKS:
            raise SourceError(f"{row.where}: '{task}' is no task of MME ({', '.join(TASKS)})")
        name = row.get("question_id") or row.get("image_path") or row.image().name
        name = name.removeprefix(f"{task}/").rsplit(".", 1)[0]
        number = numbers[f"{task}/{name}"] = numbers.get(f"{task}/{name}", 0) + 1
        truth = row.text("answer").lower()
        if truth not in ("yes", "no"):
            raise SourceError(f"{row.where}: the answer is {truth!r}; expected Yes or No")
        items.append(_item(task, name, number, row.text("question"), truth, row.image(), prompt))
    return items


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    files="the release's folder (TASK/*.jpg with .txt, or TASK/images and questions_answers_YN), "
    "VLMEvalKit's MME.tsv, or Parquet",
    questions=(2374,),
    source="github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (by request), "
    "hf.co/datasets/lmms-lab/MME",
    licence="academic research only",
    rule="calculation.py of the release: yes or no in the first 4 characters",
    prompts=PROMPTS["mme"],
    read=read,
    judge=judge,
    marks=marks,
    figures=figures,
    headline="total",
    unit="points",
    other_rules={"ParGo release (20 characters)": judge_as_released},
)
