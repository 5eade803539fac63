"""CV-Bench: counting and relations in 2D (ADE20K, COCO), depth and distance in 3D (Omni3D).

Rule: the first letter; (mean of ADE20K and COCO, and Omni3D) / 2, as Cambrian and lmms-eval do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pargo_ds.errors import SourceError
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
from pargo_ds.evaluation.benchmarks.choice import leading_letter, same
from pargo_ds.evaluation.benchmarks.files import read_rows
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

SOURCES = ("ADE20K", "COCO", "Omni3D")


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge the letter that lmms-eval reads."""
    return same(leading_letter(answer.text), item)


def figures(totals: Totals) -> dict[str, np.ndarray]:
    """Return the official mean (NaN unless all sources are there), then sources and tasks."""
    parts = percentages(totals)
    empty = np.full_like(next(iter(parts.values())), np.nan)
    ade, coco, omni = (parts.get(source, empty) for source in SOURCES)
    return {"overall": ((ade + coco) / 2 + omni) / 2, **parts}


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read the Parquet files of nyu-visionx/CV-Bench (2D and 3D)."""
    items = []
    for row in read_rows(source):
        if row.text("source") not in SOURCES:
            raise SourceError(f"{row.where}: source {row.text('source')!r}, expected {SOURCES}")
        items.append(
            Item(
                id=f"{row.get('type')}/{row.text('idx')}",
                prompt=prompt.fill(row.text("prompt")),
                images=(row.image(),),
                truth=row.text("answer").strip("()"),
                options=tuple(row.cells["choices"]),
                cluster=row.image().name,
                stratum=row.text("source"),
                groups=(row.text("source"), row.text("task")),
            )
        )
    return items


BENCHMARK = Benchmark(
    name="cvbench",
    title="CV-Bench",
    files="the Parquet files (2D and 3D)",
    questions=(2638,),
    source="hf.co/datasets/nyu-visionx/CV-Bench",
    licence="Apache-2.0",
    rule="the first letter (lmms-eval, cv_bench)",
    prompts=PROMPTS["cvbench"],
    read=read,
    judge=judge,
    marks=group_marks,
    figures=figures,
)
