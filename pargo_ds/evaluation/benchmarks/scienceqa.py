"""ScienceQA test: school questions with options, about half of them with an image.

Rule: LLaVA, eval_science_qa.py. The letter; or "X. ..."; or one "The answer is X" with a sign behind
it, any sign but a line break; else wrong.
"""

from __future__ import annotations

import re
from pathlib import Path

from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    Item,
    Judgement,
    Prompt,
    images_of,
    letter_of,
)
from pargo_ds.evaluation.benchmarks.choice import letters, only_one, same
from pargo_ds.evaluation.benchmarks.files import (
    Row,
    check_images,
    image_file,
    is_table,
    one_folder,
    read_json,
    read_rows,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

KNOWN = letters(5)
WITH_IMAGE, WITHOUT = "with image", "text only"


def parse(answer: str, options: int) -> str | None:
    """Return the letter, when the question has so many options."""
    text = answer.strip()
    said: str | None = text
    if text not in KNOWN:
        said = only_one(re.findall("The answer is ([A-Z]).", text))
        if text[:1] in KNOWN and text[1:3] == ". ":
            said = text[0]
    if said not in KNOWN[:options]:
        return None
    return said


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge by LLaVA's rule."""
    return same(parse(answer.text, len(item.options)), item)


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read problems.json, pid_splits.json and images/test/ID/image.png; or VLMEvalKit's TSV (those
    with an image only).
    """
    if is_table(source):
        return [_of_row(row, prompt) for row in read_rows(source)]
    problems = read_json(source / "problems.json")
    images = one_folder(source, "images/test", "test")
    items = []
    for number in read_json(source / "pid_splits.json")["test"]:
        entry = problems[number]
        shown: tuple = ()
        with_or_without = WITHOUT
        if entry["image"]:
            shown = (image_file(images / number / entry["image"], source),)
            with_or_without = WITH_IMAGE
        options = tuple(entry["choices"])
        items.append(
            Item(
                id=number,
                prompt=prompt.fill(entry["question"], options, entry["hint"], len(shown)),
                images=shown,
                truth=letter_of(entry["answer"]),
                options=options,
                cluster=number,
                groups=(with_or_without, entry["subject"]),
            )
        )
    check_images(images_of(items), images)
    return items


def _of_row(row: Row, prompt: Prompt) -> Item:
    options = row.lettered()
    return Item(
        id=row.text("index"),
        prompt=prompt.fill(row.text("question"), options, row.get("hint")),
        images=(row.image(),),
        truth=row.text("answer"),
        options=options,
        cluster=row.image().name,
        groups=(WITH_IMAGE,),
    )


BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA test",
    files="problems.json, pid_splits.json and the folder images/test/, or VLMEvalKit's "
    "ScienceQA_TEST.tsv",
    questions=(4241, 2017),
    source="github.com/lupantech/ScienceQA",
    licence="CC BY-NC-SA 4.0",
    rule="LLaVA, eval_science_qa.py",
    prompts=PROMPTS["scienceqa"],
    read=read,
    judge=judge,
    headline=WITH_IMAGE,
)
