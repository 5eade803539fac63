"""MMStar: 1,500 questions that need the image, six categories of 250.

Rule: mmstar.py of the authors. The answer's first character, or the one behind "(", "option " or
"the answer is ", in lower case.
"""

from __future__ import annotations

from pathlib import Path

from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt
from pargo_ds.evaluation.benchmarks.choice import letters
from pargo_ds.evaluation.benchmarks.files import read_rows
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

BEFORE = ("", "(", "option ", "the answer is ")


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge by the authors' rule; any letter of an option in one of the places counts as parsed."""
    text = answer.text.lower().strip().replace("\n", " ")
    places = []
    for start in BEFORE:
        if text.startswith(start) and len(text) > len(start):
            places.append(text[len(start)])
    right = item.truth.lower() in places
    read = [sign.upper() for sign in places if sign.upper() in letters(4)]
    return Judgement(next(iter(read), None), float(right))


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read the hub's Parquet file, or the authors' and VLMEvalKit's MMStar.tsv."""
    items = []
    for row in read_rows(source):
        question = row.text("question")
        for letter, option in zip("ABCD", row.lettered(), strict=False):
            question += f"\n{letter}. {option}"
        items.append(
            Item(
                id=row.text("index"),
                prompt=prompt.fill(question),
                images=(row.image(),),
                truth=row.text("answer"),
                cluster=row.image().name,
                groups=(row.text("category"), row.text("l2_category")),
            )
        )
    return items


BENCHMARK = Benchmark(
    name="mmstar",
    title="MMStar",
    files="mmstar.parquet, or MMStar.tsv",
    questions=(1500,),
    source="hf.co/datasets/Lin-Chen/MMStar",
    licence="see the dataset's card",
    rule="mmstar.py of the authors",
    prompts=PROMPTS["mmstar"],
    read=read,
    judge=judge,
)
