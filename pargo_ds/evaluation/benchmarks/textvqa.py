"""TextVQA val: reading text in photographs; ten people's answers to each question.

Rule: M4C's evaluator, all answers as the EvalAI processor writes them. The prompt `official` is
without OCR tokens, `llava` has what another program has read in the image, as LLaVA 1.5 was asked;
figures of the two do not compare.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt, images_of
from pargo_ds.evaluation.benchmarks.files import (
    check_images,
    image_file,
    one_file,
    one_folder,
    read_json,
    read_json_lines,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS
from pargo_ds.evaluation.benchmarks.vqa_text import evalai, share_of_people

LLAVA, ROSETTA = "llava_textvqa_val_v051_ocr.jsonl", "TextVQA_Rosetta_OCR_v0.2_val.json"
BEFORE = "Reference OCR token:"


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge by M4C's rule."""
    said = evalai(answer.text)
    return Judgement(said or None, share_of_people(said, [evalai(one) for one in item.truth]))


def ocr_tokens(folder: Path) -> dict[tuple[str, str], str]:
    """What was read in the images: tokens between commas, by image and question in lower case; the
    question is "" where all questions of an image share them.

    From LLaVA's file where there is one, else from the one of TextVQA. Raises SourceError when
    there is neither.
    """
    path = folder / LLAVA
    if path.is_file():
        found = {}
        for row in read_json_lines(path):
            question, *middle = row.text("text").split("\n")[:-1]
            if len(middle) > 1 or not all(line.startswith(BEFORE) for line in middle):
                raise SourceError(
                    f"{row.where}: expected a line '{BEFORE} ...' before the last one"
                )
            tokens = "".join(middle).removeprefix(BEFORE).strip()
            found[row.text("question_id"), question.lower()] = tokens
        return found
    if not (folder / ROSETTA).is_file():
        raise SourceError(
            f"{folder} has neither {LLAVA} nor {ROSETTA}, whose OCR tokens the prompt llava needs; "
            "--benchmark textvqa:official asks without them"
        )
    entries = read_json(folder / ROSETTA)["data"]
    return {(entry["image_id"], ""): ", ".join(entry["ocr_tokens"]) for entry in entries}


def _tokens_of(entry: dict[str, Any], known: dict[tuple[str, str], str], folder: Path) -> str:
    image = entry["image_id"]
    for question in (entry["question"].lower(), ""):
        if (image, question) in known:
            return known[image, question]
    raise SourceError(
        f"{folder}: no OCR tokens for the question {entry['question_id']} about {image}"
    )


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read TextVQA_0.5.1_val.json and train_images/ID.jpg; beside them the OCR tokens, where the prompt
    has a place for them.
    """
    path = one_file(source, "TextVQA_0.5.1_val.json", "TextVQA*val.json")
    folder = path.parent
    images = one_folder(folder, "train_images", "images")
    known = None
    if "{hint}" in prompt.template:
        known = ocr_tokens(folder)
    items = []
    for entry in read_json(path)["data"]:
        hint = ""
        if known is not None:
            hint = _tokens_of(entry, known, folder)
        items.append(
            Item(
                id=str(entry["question_id"]),
                prompt=prompt.fill(entry["question"], hint=hint),
                images=(image_file(images / f"{entry['image_id']}.jpg", folder),),
                truth=entry["answers"],
                cluster=entry["image_id"],
            )
        )
    check_images(images_of(items), images)
    return items


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA val",
    files="TextVQA_0.5.1_val.json and the folder train_images/; for the prompt llava also "
    f"{LLAVA} (of LLaVA's eval.zip) or {ROSETTA}",
    questions=(5000,),
    source="textvqa.org",
    licence="CC BY 4.0",
    rule="M4C's evaluator",
    prompts=PROMPTS["textvqa"],
    read=read,
    judge=judge,
)
