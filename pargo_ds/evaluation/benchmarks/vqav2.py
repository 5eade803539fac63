"""VQAv2 val: ten people's answers to each question.

Rule: vqaEval.py, which writes answers in one way only where the ten differ, so that "Yes" fails
against ten "yes"; the EvalAI processor goes first, as in LLaVA's submissions.
"""

from __future__ import annotations

from pathlib import Path

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt, images_of
from pargo_ds.evaluation.benchmarks.files import (
    check_images,
    image_file,
    one_file,
    one_folder,
    read_json,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS
from pargo_ds.evaluation.benchmarks.vqa_text import evalai, share_of_people, stripped, vqa


def official_share(answer: str, people: list[str]) -> float:
    """Return the point of an answer by vqaEval.py."""
    answer, people = stripped(answer), [stripped(one) for one in people]
    if len(set(people)) > 1:
        answer, people = vqa(answer), [vqa(one) for one in people]
    return share_of_people(answer, people)


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge by the official rule on the answer as EvalAI would write it."""
    said = evalai(answer.text)
    return Judgement(said or None, official_share(said, item.truth))


def judge_as_it_is(item: Item, answer: Answer) -> Judgement:
    """Judge by the official rule on the answer itself."""
    return Judgement(answer.text or None, official_share(answer.text, item.truth))


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read v2_OpenEnded_*_questions.json, v2_*_annotations.json and val2014/COCO_val2014_*.jpg."""
    questions = read_json(one_file(source, "v2_OpenEnded*questions.json"))
    annotations = read_json(one_file(source, "v2_mscoco*annotations.json"))
    split = questions["data_subtype"]
    images = one_folder(source, split)
    truths = {entry["question_id"]: entry for entry in annotations["annotations"]}
    items = []
    for entry in questions["questions"]:
        number, image = entry["question_id"], entry["image_id"]
        if number not in truths:
            raise SourceError(f"{source}: question {number} has no annotation")
        items.append(
            Item(
                id=str(number),
                prompt=prompt.fill(entry["question"]),
                images=(image_file(images / f"COCO_{split}_{image:012d}.jpg", source),),
                truth=[answer["answer"] for answer in truths[number]["answers"]],
                cluster=str(image),
                groups=(truths[number]["answer_type"],),
            )
        )
    check_images(images_of(items), images)
    return items


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQAv2 val",
    files="v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and the "
    "folder val2014/",
    questions=(214354,),
    source="visualqa.org",
    licence="CC BY 4.0 (questions), Flickr's terms (images)",
    rule="vqaEval.py; before, the EvalAI processor (LLaVA)",
    prompts=PROMPTS["vqav2"],
    read=read,
    judge=judge,
    other_rules={"vqaEval.py, answers as they are": judge_as_it_is},
)
