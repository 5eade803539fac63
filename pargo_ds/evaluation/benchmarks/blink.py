"""BLINK val: 14 tasks of seeing, up to four images a question; the mean of the tasks.

Rule: test_benchmark.py of the authors. The letter alone, or the only "(X)" among the words (of the
last paragraph, if it has just one). What is left the authors give to GPT-3.5; here it is wrong and
counted as unparsed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    Item,
    Judgement,
    Prompt,
    Totals,
    group_marks,
    percentages,
)
from pargo_ds.evaluation.benchmarks.choice import letters, only_one, same
from pargo_ds.evaluation.benchmarks.files import read_rows
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

MOST = 5
IMAGES = ("image_1", "image_2", "image_3", "image_4")


def parse(answer: str, options: int) -> str | None:
    """Return "(A)", or None where the authors would ask GPT-3.5."""
    if answer in letters(MOST):
        return f"({answer})"
    known = [f"({letter})" for letter in letters(MOST)]
    if answer in known:
        return answer
    said = set(answer.split()) & set(known[:options])
    last = set(answer.split("\n\n")[-1].split()) & set(known[:options])
    if len(last) == 1:
        return last.pop()
    return only_one(list(said))


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge by the authors' rule without GPT."""
    return same(parse(answer.text, len(item.options)), item)


def figures(totals: Totals) -> dict[str, np.ndarray]:
    """Return the tasks' mean, each task weighing the same, then the tasks."""
    parts = percentages(totals)
    return {"overall": np.mean(list(parts.values()), axis=0), **parts}


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read the folder of the hub's dataset: TASK/val-*.parquet."""
    items = []
    for row in read_rows(source):
        if row.text("idx").startswith("test"):  # without truths; lies in the same folders
            continue
        images = tuple(row.images[name] for name in IMAGES if name in row.images)
        items.append(
            Item(
                id=row.text("idx"),
                prompt=prompt.fill(row.text("prompt"), images=len(images)),
                images=images,
                truth=row.text("answer"),
                options=tuple(row.cells["choices"]),
                cluster=row.text("idx"),
                stratum=row.text("sub_task"),
                groups=(row.text("sub_task"),),
            )
        )
    return items


BENCHMARK = Benchmark(
    name="blink",
    title="BLINK val",
    files="the folder of the hub's dataset (TASK/val-*.parquet)",
    questions=(1901,),
    source="hf.co/datasets/BLINK-Benchmark/BLINK",
    licence="Apache-2.0",
    rule="test_benchmark.py of the authors without its GPT step",
    prompts=PROMPTS["blink"],
    read=read,
    judge=judge,
    marks=group_marks,
    figures=figures,
)
