"""The questions about composed scenes, whose truth is known: exact match of words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pargo_ds.data.shards.schema import Sample
from pargo_ds.data.shards.splits import split_folders
from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import Answer, Benchmark, ImageRef, Item, Judgement, Prompt
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS
from pargo_ds.evaluation.scoring import Question, is_right, questions_of

PROMPT = PROMPTS["scenes"]["official"]


def items_of(
    samples: Sequence[Sample], questions: Sequence[Question], prompt: Prompt = PROMPT
) -> list[Item]:
    """Return the questions as items, in their order; `scene` of each is a position in `samples`.

    Raises ValueError naming a sample without an image.
    """
    items = []
    for number, question in enumerate(questions):
        sample = samples[question.scene]
        if not sample.images:
            raise ValueError(f"sample {sample.id}: it has no image to ask about")
        data = sample.images[0]
        items.append(
            Item(
                id=f"{sample.id}/{number}",
                prompt=prompt.fill(question.question),
                images=(ImageRef(f"sample {sample.id}: image 0", len(data), partial(bytes, data)),),
                truth=question.answer,
                cluster=sample.id,
                groups=(question.type, question.size),
                meta={"place": question.place, "count": small_objects(sample)},
            )
        )
    return items


def small_objects(sample: Sample) -> int | None:
    """Return how many small objects the scene has; None where its shards do not say it."""
    objects = sample.meta.get("objects")
    if objects is None:
        return None
    return sum(thing["size"] == "small" for thing in objects)


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge an exact match after `scoring.normalise`."""
    return Judgement(answer.text or None, float(is_right(answer.text, item.truth)))


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read shards whose samples have meta["questions"], or a folder with validation/ in it.

    Raises SourceError when there are no questions.
    """
    # Reading shards imports streaming, which takes seconds; scoring does without.
    from pargo_ds.data.shards.mds import read_samples

    folder, _ = split_folders(source)
    samples = list(read_samples(folder))
    questions = questions_of(samples)
    if not questions:
        raise SourceError(f"{folder}: its samples have no meta['questions']")
    return items_of(samples, questions, prompt)


BENCHMARK = Benchmark(
    name="scenes",
    title="composed scenes",
    files="shards of tools/build_shards.py scenes",
    questions=(),
    source="composed by make demo",
    licence="CC BY-SA 4.0 (OpenMoji)",
    rule="the same words, case and punctuation aside",
    prompts=PROMPTS["scenes"],
    read=read,
    judge=judge,
)
