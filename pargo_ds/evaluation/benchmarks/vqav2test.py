"""VQAv2 test and test-dev: questions whose answers the server of the authors keeps.

Nothing is scored here; the submission file goes to EvalAI.
"""

from __future__ import annotations

from pathlib import Path

from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt, images_of
from pargo_ds.evaluation.benchmarks.files import (
    check_images,
    image_file,
    one_file,
    one_folder,
    read_json,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge nothing: there is no truth to compare with."""
    return Judgement(answer.text or None, 0.0)


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read v2_OpenEnded_mscoco_test*_questions.json and test2015/COCO_test2015_*.jpg."""
    path = one_file(source, "v2_OpenEnded*test*questions.json")
    images = one_folder(path.parent, "test2015")
    items = []
    for entry in read_json(path)["questions"]:
        image = images / f"COCO_test2015_{entry['image_id']:012d}.jpg"
        items.append(
            Item(
                id=str(entry["question_id"]),
                prompt=prompt.fill(entry["question"]),
                images=(image_file(image, source),),
                truth=None,
                cluster=str(entry["image_id"]),
            )
        )
    check_images(images_of(items), images)
    return items


BENCHMARK = Benchmark(
    name="vqav2test",
    title="VQAv2 test",
    files="v2_OpenEnded_mscoco_test-dev2015_questions.json (or test2015) and the folder test2015/",
    questions=(107394, 447793),
    source="visualqa.org; scored at eval.ai",
    licence="CC BY 4.0 (questions), Flickr's terms (images)",
    rule="EvalAI's server; --submission writes its file",
    prompts=PROMPTS["vqav2"],
    read=read,
    judge=judge,
    needs="server",
)
