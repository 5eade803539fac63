"""GQA: short answers about scenes, compared as texts.

Rule: eval.py of the release, string equality; LLaVA lowers the answer and strips full stops first.
"""

from __future__ import annotations

from pathlib import Path

from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt, images_of
from pargo_ds.evaluation.benchmarks.choice import same
from pargo_ds.evaluation.benchmarks.files import (
    check_images,
    image_file,
    one_file,
    one_folder,
    read_json,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge equality after what LLaVA does to an answer."""
    return same(answer.text.rstrip(".").lower() or None, item)


def judge_as_it_is(item: Item, answer: Answer) -> Judgement:
    """Judge equality, as eval.py has it."""
    return same(answer.text or None, item)


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read testdev_balanced_questions.json and images/ID.jpg."""
    path = one_file(source, "testdev_balanced_questions.json", "*questions.json")
    images = one_folder(path.parent, "images")
    items = []
    for number, entry in read_json(path).items():
        kind = "binary"
        if entry["types"]["structural"] == "query":
            kind = "open"
        items.append(
            Item(
                id=number,
                prompt=prompt.fill(entry["question"]),
                images=(image_file(images / f"{entry['imageId']}.jpg", path.parent),),
                truth=entry["answer"],
                cluster=entry["imageId"],
                groups=(kind,),
            )
        )
    check_images(images_of(items), images)
    return items


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA testdev balanced",
    files="testdev_balanced_questions.json and the folder images/",
    questions=(12578,),
    source="cs.stanford.edu/people/dorarad/gqa",
    licence="CC BY 4.0",
    rule="eval.py of the release: equality; before, lower case and no final full stops (LLaVA)",
    prompts=PROMPTS["gqa"],
    read=read,
    judge=judge,
    other_rules={"eval.py, answers as they are": judge_as_it_is},
)
