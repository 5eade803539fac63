"""What a study found: results, comparisons, costs, curves, examples, all that the report shows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pargo_ds.study.attention import SCENES
from pargo_ds.study.cell_result import questions_of, read_result
from pargo_ds.study.cells import Cell, alike
from pargo_ds.study.comparisons import Difference, Figure, accuracy_figures, differences
from pargo_ds.study.costs import ProjectorSize
from pargo_ds.study.results import Results, gather, groups_of
from pargo_ds.study.study_file import Size, Study

SHOWN_EACH = 4
"""Examples of wins, and as many of losses."""


@dataclass(frozen=True)
class Cost:
    """What a variant's projector costs; `equal`: to the reference in tokens, in parameters."""

    tokens: int
    parameters: int
    ms: float
    equal: Mapping[str, bool]
    images: tuple[int, ...]
    """Seen in training, a number for each seed."""


@dataclass(frozen=True)
class Example:
    """A question that the reference and another variant answered differently."""

    scene: str
    question: str
    truth: str
    answers: Mapping[str, str]
    """Variant -> its answer of the first seed."""
    right: Mapping[str, float]
    """Variant -> share of seeds that were right."""
    image: bytes | None


@dataclass(frozen=True)
class Attention:
    """What the tokens of one variant's projector attend to, in its first seed."""

    images: Sequence[bytes]
    weights: np.ndarray
    """`(images, tokens, patches)`."""
    num_partial: int


@dataclass(frozen=True)
class Findings:
    """All that the report shows."""

    study: Study
    size: Size
    results: Results
    notes: Sequence[str]
    """What was left out, and what is not as it should be."""
    accuracy: Sequence[Figure]
    differences: Sequence[Difference]
    blind: Mapping[str, float]
    """Group -> accuracy of the commonest training answer to the same words; empty where unknown."""
    costs: Mapping[str, Cost]
    curves: Mapping[str, Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]]
    """Stage -> variant -> a curve for each seed."""
    scores: Mapping[str, Mapping[str, Any]]
    """Variant -> benchmark -> {"unit", "headline", "figures": {name: mean over seeds}}."""
    wins: Sequence[Example]
    losses: Sequence[Example]
    attention: Mapping[str, Attention]
    """Of the variants whose tokens attend to patches."""
    machines: Sequence[str]


def find(study: Study, cells: Sequence[Cell], size: Size) -> Findings:
    """Compare the finished cells. Raises UserError when there is nothing to compare yet."""
    found, answered = {}, {}
    for cell in cells:
        if cell.result.is_file():
            result = read_result(cell.result)
            found[cell.variant, cell.seed] = result
            right = [entry["right"] for entry in result["answers"]]
            answered[cell.variant, cell.seed] = questions_of(result), right
    results, notes = gather(answered, list(size.variants))
    kept = {}
    for name in results.variants:
        kept[name] = [found[name, seed] for seed in results.seeds]
    machines = {_words(result["machine"]) for result in chain.from_iterable(kept.values())}
    wins, losses = examples(results, size, kept)
    costs = costs_of(kept, size.reference)
    return Findings(
        study, size, results, [*notes, *uneven(costs), *few_seeds(results)],
        accuracy_figures(results),
        differences(results, size.reference, size.claims),
        blind_accuracy(results, size), costs, curves_of(kept), scores_of(kept), wins, losses,
        attention_of(kept, size), sorted(machines),
    )  # fmt: skip


def costs_of(kept: Mapping[str, Sequence[Mapping[str, Any]]], reference: str) -> dict[str, Cost]:
    """Return the costs of every variant; the time is the median over its cells."""
    sizes = {}
    for name, results in kept.items():
        projector = results[0]["projector"]
        sizes[name] = ProjectorSize(projector["tokens"], projector["parameters"])
    found = {}
    for name, results in kept.items():
        equal = {}
        if reference in sizes:
            equal = {what: alike(sizes[name], sizes[reference], what) for what in EQUAL}
        ms = statistics.median(result["projector"]["ms"] for result in results)
        images = tuple(int(result["images"]) for result in results)
        found[name] = Cost(sizes[name].tokens, sizes[name].parameters, ms, equal, images)
    return found


EQUAL = ("tokens", "parameters")


def uneven(costs: Mapping[str, Cost]) -> list[str]:
    """Return a note where variants did not see as many images."""
    seen = {name: statistics.mean(cost.images) for name, cost in costs.items()}
    if max(seen.values()) <= 1.01 * min(seen.values()):
        return []
    least, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
    return [
        f"images seen are not equal: {seen[least]:,.0f} ({least}) to {seen[most]:,.0f} ({most}); a pack "
        "is bounded by its tokens"
    ]


def few_seeds(results: Results) -> list[str]:
    """Return a note where nothing can be claimed."""
    if len(results.seeds) > 1:
        return []
    return ["one seed: how much seeds matter is not known, so there are no intervals and no claims"]


def curves_of(kept: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, list[Any]]]:
    """Return stage -> variant -> curves."""
    found: dict[str, dict[str, list[Any]]] = {}
    for name, results in kept.items():
        for result in results:
            for stage, curve in result["curves"].items():
                found.setdefault(stage, {}).setdefault(name, []).append(curve)
    return found


def scores_of(kept: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the benchmarks' own figures, means over seeds."""
    found: dict[str, dict[str, Any]] = {}
    for name, results in kept.items():
        for benchmark, first in results[0]["scores"].items():
            own = [result["scores"][benchmark]["figures"] for result in results]
            figures = {}
            for key in own[0]:
                figures[key] = statistics.mean(one[key] for one in own)
            found.setdefault(name, {})[benchmark] = {**first, "figures": figures}
    return found


def blind_accuracy(results: Results, size: Size) -> dict[str, float]:
    """Return the accuracy without looking, where the questions are those of scenes whose training
    shards are here.
    """
    from pargo_ds.data.shards.mds import read_samples
    from pargo_ds.data.shards.splits import split_folders
    from pargo_ds.evaluation.scoring import blind_answers, is_right, questions_of

    path = Path(size.evaluation.get(SCENES, ""))
    if SCENES not in size.evaluation or not path.is_dir():
        return {}
    validation, train = split_folders(path)
    if train is None:
        return {}
    asked = questions_of(read_samples(validation))
    known = questions_of(read_samples(train))
    if not known or len(asked) != sum(q.id.startswith(SCENES + "/") for q in results.questions):
        return {}
    guesses = blind_answers(known, asked)
    right = [is_right(guess, one.answer) for guess, one in zip(guesses, asked, strict=True)]
    values = np.full(len(results.questions), np.nan)
    values[[question.id.startswith(SCENES + "/") for question in results.questions]] = right
    found = {}
    for group, mask in groups_of(results.questions).items():
        if not np.isnan(values[mask]).any():
            found[group] = float(values[mask].mean())
    return found


def examples(
    results: Results, size: Size, kept: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[Example], list[Example]]:
    """Return (wins, losses): questions on which the share of right seeds of the reference and of
    the others differ most, a scene each. They are chosen, and the report says so.
    """
    if size.reference not in results.variants or len(results.variants) < 2:
        return [], []
    shares = results.right.mean(1)
    place = results.variants.index(size.reference)
    gain = shares[place] - np.delete(shares, place, axis=0).mean(0)
    order = np.argsort(-gain, kind="stable")
    wins = _of_different_scenes([n for n in order if gain[n] > 0], results)
    losses = _of_different_scenes([n for n in order[::-1] if gain[n] < 0], results)
    scenes = {results.questions[n].scene for n in (*wins, *losses)}
    images = scene_images(size, scenes)

    def shown(number: int) -> Example:
        entries = {name: own[0]["answers"][number] for name, own in kept.items()}
        any_one = entries[size.reference]
        return Example(
            scene=any_one["scene"],
            question=any_one["prompt"].replace("<image>", "").strip(),
            truth=str(any_one["truth"]),
            answers={name: entry["answer"] for name, entry in entries.items()},
            right={name: float(shares[n, number]) for n, name in enumerate(results.variants)},
            image=images.get(any_one["scene"]),
        )

    return [shown(number) for number in wins], [shown(number) for number in losses]


def attention_of(
    kept: Mapping[str, Sequence[Mapping[str, Any]]], size: Size
) -> dict[str, Attention]:
    """Return what the tokens of each variant's first seed attend to, where that is known."""
    known = {name: own[0]["attention"] for name, own in kept.items() if own[0].get("attention")}
    scenes = set(chain.from_iterable(one["scenes"] for one in known.values()))
    images = scene_images(size, scenes)
    found = {}
    for name, one in known.items():
        if scenes <= set(images):
            shown = [images[scene] for scene in one["scenes"]]
            found[name] = Attention(shown, np.array(one["weights"]), one["num_partial"])
    return found


def _of_different_scenes(order: Sequence[int], results: Results) -> list[int]:
    chosen: dict[str, int] = {}
    for number in order:
        chosen.setdefault(results.questions[number].scene, int(number))
        if len(chosen) == SHOWN_EACH:
            break
    return list(chosen.values())


def scene_images(size: Size, scenes: set[str]) -> dict[str, bytes]:
    """Return the files of the images of composed scenes; nothing of other benchmarks."""
    from pargo_ds.data.shards.mds import read_samples
    from pargo_ds.data.shards.splits import split_folders

    path = Path(size.evaluation.get(SCENES, ""))
    if SCENES not in size.evaluation or not path.is_dir() or not scenes:
        return {}
    found = {}
    for sample in read_samples(split_folders(path)[0]):
        if f"{SCENES}/{sample.id}" in scenes:
            found[f"{SCENES}/{sample.id}"] = sample.images[0]
    return found


def _words(machine: Mapping[str, str]) -> str:
    versions = [f"{name} {version}" for name, version in machine.items() if name != "device"]
    return f"{machine['device']}: {', '.join(versions)}"
