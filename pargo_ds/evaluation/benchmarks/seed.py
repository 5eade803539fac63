"""SEED-Bench-1, its image part: four options, nine types of questions.

Rule: eval.py of the authors takes the option whose content has the lowest loss (a token's mean, as
SEED-Bench-2's interface for LLaVA computes it). LLaVA compares generated text with the letter.
"""

from __future__ import annotations

from pathlib import Path

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    Item,
    Judgement,
    Prompt,
    images_of,
    letter_of,
)
from pargo_ds.evaluation.benchmarks.choice import judge_equal, letters, same
from pargo_ds.evaluation.benchmarks.files import (
    IMAGE_ENDINGS,
    Row,
    check_images,
    image_file,
    is_table,
    one_file,
    one_folder,
    read_json,
    read_rows,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS
from pargo_ds.evaluation.benchmarks.ranking import likeliest


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge the likeliest option where losses were measured, else LLaVA's rule."""
    if answer.losses:
        return same(letter_of(likeliest(answer.losses)), item)
    return judge_equal(item, answer)


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read SEED-Bench.json with SEED-Bench-image/, or VLMEvalKit's SEEDBench_IMG.tsv."""
    if is_table(source):
        return [_of_row(row, prompt) for row in read_rows(source)]
    path = one_file(source, "SEED-Bench.json")
    body = read_json(path)
    names = {number: name for name, number in body.get("question_type", {}).items()}
    images = one_folder(path.parent, "SEED-Bench-image", "images")
    items = []
    for number, entry in enumerate(body["questions"], start=1):
        if entry["data_type"] != "image":
            continue
        row = Row(f"{path}, question {number}", entry)
        kind = entry["question_type_id"]
        found = images / row.text("data_id")
        for end in ("", *IMAGE_ENDINGS):
            if (images / f"{row.text('data_id')}{end}").is_file():
                found = images / f"{row.text('data_id')}{end}"
                break
        options = tuple(row.text(f"choice_{letter}") for letter in "abcd")
        items.append(
            Item(
                id=row.text("question_id"),
                prompt=prompt.fill(row.text("question"), options),
                images=(image_file(found, path.parent),),
                truth=_checked(row, options),
                options=options,
                cluster=row.text("data_id"),
                groups=(names.get(kind, f"type {kind}"),),
            )
        )
    check_images(images_of(items), images)
    return items


def _checked(row: Row, options: tuple[str, ...]) -> str:
    if row.text("answer") not in letters(len(options)):
        raise SourceError(f"{row.where}: the answer '{row.text('answer')}' is no option")
    return row.text("answer")


def _of_row(row: Row, prompt: Prompt) -> Item:
    options = row.lettered()
    return Item(
        id=row.text("index"),
        prompt=prompt.fill(row.text("question"), options),
        images=(row.image(),),
        truth=_checked(row, options),
        options=options,
        cluster=row.image().name,
        groups=(row.text("category"),),
    )


BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench (image)",
    files="SEED-Bench.json and the folder SEED-Bench-image/, or VLMEvalKit's SEEDBench_IMG.tsv",
    questions=(14233, 14232),
    source="hf.co/datasets/AILab-CVC/SEED-Bench",
    licence="CC BY-NC 4.0 (questions)",
    rule="eval.py of the authors: the option of the lowest loss a token; with prompt llava: the "
    "answer is the letter",
    prompts=PROMPTS["seed"],
    read=read,
    judge=judge,
)
