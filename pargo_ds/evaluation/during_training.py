"""Small benchmarks during training, on all ranks at once.

Under ZeRO-3 every forward pass gathers weights from all ranks. So the ranks take a batch each in
rounds, a rank without one asks its last one again, and `generate` goes on on every rank until all
have ended their answers (synced_gpus). Nothing draws random numbers, and the data's position is not
touched: a run's losses are the same with and without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pargo_ds import distributed
from pargo_ds.config import EvaluationSection
from pargo_ds.errors import ConfigError
from pargo_ds.evaluation.answers import answer_items
from pargo_ds.evaluation.ask import AskSettings, Load, decoded, items_of_unit, plan
from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Prompt, read_items
from pargo_ds.evaluation.benchmarks import benchmark_named
from pargo_ds.evaluation.likelihood import rank_options
from pargo_ds.evaluation.score import score
from pargo_ds.evaluation.store import digest

DRAWS = 500
"""Of the interval: enough for a curve, and well below a second."""


@dataclass(frozen=True)
class Slice:
    """The part of a benchmark that a run is asked."""

    benchmark: Benchmark
    prompt: Prompt
    items: list[Item]
    units: list[list[int]]


def read_slices(section: EvaluationSection, processor: Any) -> list[Slice]:
    """Read the questions of every benchmark of a run file, and their batches.

    Raises ConfigError for a name or prompt that is not known, SourceError for files that are not as
    they should be.
    """
    slices = []
    for words, path in section.benchmarks.items():
        name, _, chosen = words.partition(":")
        benchmark = benchmark_named(name)
        if benchmark.needs in ("judge", "server"):
            raise ConfigError(
                f"evaluation.benchmarks: {name} needs a {benchmark.needs}, which a run does not have"
                "; take another one"
            )
        chosen = chosen or next(iter(benchmark.prompts))
        if chosen not in benchmark.prompts:
            raise ConfigError(
                f"evaluation.benchmarks: {name} has no prompt '{chosen}'; there are "
                f"{', '.join(benchmark.prompts)}"
            )
        prompt = benchmark.prompts[chosen]
        items = choose(read_items(benchmark, Path(path), prompt, subset=True), section.questions)
        units = plan(processor, items, prompt, AskSettings(rows=section.batch))
        slices.append(Slice(benchmark, prompt, items, units))
    return slices


def choose(items: Sequence[Item], most: int) -> list[Item]:
    """Return whole clusters with at most `most` questions together (but at least one), in the order
    of the benchmark; drawn by their names, so that every run asks the same ones.

    Questions without an image are left out: they would not run the vision encoder, which under
    ZeRO-3 the other ranks wait for.
    """
    clusters: dict[str, list[Item]] = {}
    for item in items:
        if item.images:
            clusters.setdefault(item.cluster, []).append(item)
    chosen: set[str] = set()
    number = 0
    for cluster in sorted(clusters, key=digest):
        if not chosen or number + len(clusters[cluster]) <= most:
            chosen.add(cluster)
            number += len(clusters[cluster])
    return [item for item in items if item.images and item.cluster in chosen]


def evaluator(
    model: Any, processor: Any, slices: Sequence[Slice], section: EvaluationSection
) -> Callable[[Callable[[], None]], dict[str, float]] | None:
    """Return what asks all slices and returns their figures, on every rank; None without any. It
    takes what is to be called whenever a round is done.
    """
    if not slices:
        return None

    def evaluate(progress: Callable[[], None]) -> dict[str, float]:
        figures: dict[str, float] = {}
        started = time.monotonic()

        def late() -> bool:
            return time.monotonic() - started > 60 * section.minutes

        for part in slices:
            answers = ask_together(model, processor, part, late, progress)
            figures |= figures_of(part, answers)
        return figures

    return evaluate


def ask_together(
    model: Any,
    processor: Any,
    part: Slice,
    late: Callable[[], bool],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Answer]:
    """Return the answers by question, on every rank; until any rank is late, but one round at
    least. `progress` is called after each round.

    Each round is one batch a rank, and all ranks make the same number of forward passes in it. An
    image that cannot be read on any is an error on all.
    """
    ranks, rank = distributed.world_size(), distributed.rank()
    own: list[Answer] = []
    for first in range(0, len(part.units), ranks):
        if first and distributed.all_reduce([float(late())], model.device, "max")[0]:
            break
        number = min(first + rank, len(part.units) - 1)
        batch = items_of_unit(part.items, part.units[number])
        load = distributed.run_on_all_ranks(partial(decoded, batch))
        answers = ask_batch(model, processor, batch, part.prompt, load)
        progress()
        if number == first + rank:
            own += answers
    gathered = chain.from_iterable(distributed.gather_objects(own))
    return {answer.id: answer for answer in gathered}


def ask_batch(
    model: Any, processor: Any, batch: list[Item], prompt: Prompt, load: Load
) -> list[Answer]:
    """Return the answers to a batch. It is never halved when memory lacks: the other ranks would
    make fewer passes.
    """
    if prompt.likelihood:
        return rank_options(model, processor, batch, load=load)
    return answer_items(
        model, processor, batch, load=load, max_new_tokens=prompt.max_new_tokens,
        beams=prompt.beams, synced=distributed.world_size() > 1,
    )  # fmt: skip


def figures_of(part: Slice, answers: dict[str, Answer]) -> dict[str, float]:
    """Return the headline with its 95 % interval, and how many questions stand behind it; clusters
    that were not asked whole do not count. Without any there is no figure.
    """
    missing = {item.cluster for item in part.items if item.id not in answers}
    items = [item for item in part.items if item.cluster not in missing]
    name = f"evaluation_{part.benchmark.name}"
    figures = {f"{name}_questions": float(len(items))}
    if items:
        found = score(part.benchmark, items, [answers[item.id] for item in items], DRAWS)
        headline = found["figures"][found["headline"]]
        figures |= {name: headline["value"]}
        figures |= {f"{name}_{end}": headline[end] for end in ("low", "high")}
    return figures
