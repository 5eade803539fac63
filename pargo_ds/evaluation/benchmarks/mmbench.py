"""MMBench dev: a question counts when it is right under every rotation of its options.

Rule: VLMEvalKit, multiple_choice.py (circular) with matching_util.py. Its third step asks GPT what
an answer without letter or option means; here that is wrong and counted as unparsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    Item,
    Judgement,
    Mark,
    Prompt,
    all_right_marks,
)
from pargo_ds.evaluation.benchmarks.choice import letter_or_text, letters, same
from pargo_ds.evaluation.benchmarks.files import one_file, read_tsv
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

ROTATION = 1_000_000
"""Rotations of question i have the indices i + n * ROTATION."""


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge one rotation by itself."""
    return same(letter_or_text(answer.text, item.options), item)


def judge_with_sentences(item: Item, answer: Answer) -> Judgement:
    """Judge one rotation as VLMEvalKit does since June 2026."""
    return same(letter_or_text(answer.text, item.options, sentence=True), item)


def marks(items: Sequence[Item], judged: Sequence[Judgement]) -> Iterable[Mark]:
    """Yield a mark for each question, all of its rotations together, and one for each rotation."""
    yield from all_right_marks(
        items, judged, lambda item: item.cluster, lambda item: ["overall", *item.groups]
    )
    for item, judgement in zip(items, judged, strict=True):
        yield Mark("single rotations", judgement.right, item)


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read the TSV, or a folder with one.

    Raises SourceError for rows without options, truth (the test split has none) or image, and for
    rotations whose question itself is missing.
    """
    items = []
    for row in read_tsv(one_file(source, "*.tsv")):
        index = int(row.text("index"))
        options = row.lettered()
        truth = row.text("answer")
        if truth not in letters(len(options)):
            raise SourceError(
                f"{row.where}: the answer '{truth}' is none of {len(options)} options"
            )
        groups = [row.get("l2-category"), row.get("category")]
        items.append(
            Item(
                id=str(index),
                prompt=prompt.fill(row.text("question"), options, row.get("hint")),
                images=(row.image(),),
                truth=truth,
                options=options,
                cluster=str(index % ROTATION),
                groups=tuple(name for name in groups if name),
            )
        )
    lost = {item.cluster for item in items} - {item.id for item in items}
    if lost:
        raise SourceError(f"{source}: rotations of questions that are missing: {sorted(lost)[:3]}")
    return items


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench dev (en)",
    files="MMBench_DEV_EN.tsv or mmbench_dev_20230712.tsv",
    questions=(4329, 4377),
    source="github.com/open-compass/MMBench",
    licence="Apache-2.0",
    rule="circular; VLMEvalKit 0.0.20 without its GPT step",
    prompts=PROMPTS["mmbench"],
    read=read,
    judge=judge,
    marks=marks,
    other_rules={
        "VLMEvalKit since June 2026 (also a letter behind 'answer is')": judge_with_sentences
    },
)
