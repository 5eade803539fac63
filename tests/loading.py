"""What tests of the loader share: streams of global batches put together from all ranks."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pargo_ds.batch import Batch
from pargo_ds.data.loader import PackLoader
from pargo_ds.data_sections import DataSection, StreamSection


def reading(data: DataSection, *folders: Path, **changes: Any) -> DataSection:
    """`data` with these folders as its mixture."""
    sections = [StreamSection(path=str(folder)) for folder in folders]
    return data.model_copy(update={"train": sections, **changes})


def global_steps(loaders: list[PackLoader]) -> Iterator[list[Batch]]:
    """The packs of each step over all ranks, in the plan's order: rank r holds packs r, r + ranks,
    ...
    """
    for ranks in zip(*(loader.steps() for loader in loaders), strict=True):
        yield [batch for micro_step in zip(*ranks, strict=True) for batch in micro_step]


def named(steps: Iterator[list[Batch]], count: int) -> list[list[tuple[str, ...]]]:
    return [[batch.sample_ids for batch in step] for step in itertools.islice(steps, count)]


def two_epochs(loader: PackLoader) -> int:
    return loader.steps_per_epoch(0) + loader.steps_per_epoch(1)


def ids(steps: Iterator[list[Batch]] | list[list[tuple[str, ...]]]) -> Counter[str]:
    """How often each sample came."""
    return Counter(itertools.chain.from_iterable(itertools.chain.from_iterable(steps)))
