"""RealWorldQA: photographs from cars and streets; a letter, a word or a number.

There is no official program. Equality, case and a final full stop aside; where the truth is a
letter, a text behind the letter does no harm.
"""

from __future__ import annotations

from pathlib import Path

from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt
from pargo_ds.evaluation.benchmarks.choice import single_letter
from pargo_ds.evaluation.benchmarks.files import Row, read_rows
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

OPTIONS = 9


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge the letter, or equality."""
    said = answer.text.strip().rstrip(".").lower()
    if said == item.truth.lower():
        return Judgement(said, 1.0)
    if len(item.truth) == 1 and item.truth.isalpha():
        letter = single_letter(answer.text, OPTIONS)
        return Judgement(letter, float(letter == item.truth))
    return Judgement(said or None, 0.0)


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read Parquet with image, question, answer; or VLMEvalKit's RealWorldQA.tsv with options."""
    return [_item(number, row, prompt) for number, row in enumerate(read_rows(source))]


def _item(number: int, row: Row, prompt: Prompt) -> Item:
    question = row.text("question")
    for letter, option in zip("ABCDEFGHI", row.lettered(), strict=False):
        question += f"\n{letter}. {option}"
    return Item(
        id=row.get("index") or str(number),
        prompt=prompt.fill(question),
        images=(row.image(),),
        truth=row.text("answer"),
        options=row.lettered(),
        cluster=row.image().name,
    )


BENCHMARK = Benchmark(
    name="realworldqa",
    title="RealWorldQA",
    files="the Parquet files, or VLMEvalKit's RealWorldQA.tsv",
    questions=(765,),
    source="hf.co/datasets/xai-org/RealworldQA",
    licence="CC BY-ND 4.0",
    rule="equality of letter or word; there is no official program",
    prompts=PROMPTS["realworldqa"],
    read=read,
    judge=judge,
)
