"""CountBenchQA: how many things are in the image?

Rule: the number itself, in digits or as a word up to twenty (lmms-eval, countbench). VLMEvalKit
looks for the digits anywhere in the answer, so that 1 is right when 10 was said.
"""

from __future__ import annotations

from pathlib import Path

from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt
from pargo_ds.evaluation.benchmarks.choice import same
from pargo_ds.evaluation.benchmarks.files import Row, read_rows
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip
NUMBERS = {word: str(number) for number, word in enumerate(WORDS)} | {"none": "0"}


def parse(answer: str) -> str | None:
    """Return the number in digits, None for what is no number."""
    text = answer.strip().lower().rstrip(".")
    text = NUMBERS.get(text, text)
    if not text.isdigit():
        return None
    return text


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge equal numbers as right."""
    return same(parse(answer.text), item)


def judge_anywhere(item: Item, answer: Answer) -> Judgement:
    """Judge by VLMEvalKit's rule: the digits stand somewhere in the answer."""
    return Judgement(answer.text or None, float(item.truth in answer.text))


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read Parquet with image, question, number; or VLMEvalKit's CountBenchQA.tsv."""
    return [_item(number, row, prompt) for number, row in enumerate(read_rows(source))]


def _item(number: int, row: Row, prompt: Prompt) -> Item:
    return Item(
        id=row.get("index") or str(number),
        prompt=prompt.fill(row.text("question")),
        images=(row.image(),),
        truth=row.get("number") or row.text("answer"),
        cluster=row.image().name,
    )


BENCHMARK = Benchmark(
    name="countbench",
    title="CountBenchQA",
    files="the Parquet files, or VLMEvalKit's CountBenchQA.tsv",
    questions=(491,),
    source="hf.co/datasets/vikhyatk/CountBenchQA",
    licence="see the dataset's card",
    rule="equality of numbers (lmms-eval, countbench)",
    prompts=PROMPTS["countbench"],
    read=read,
    judge=judge,
    other_rules={"VLMEvalKit (digits anywhere)": judge_anywhere},
)
