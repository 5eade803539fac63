"""What a study found: for each variant, seed and question, whether the answer was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pargo_ds.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AskedQuestion:
    """One question, and what a table may ask about it."""

    id: str
    scene: str
    """What is drawn at random: the scene, or the image of a benchmark."""
    type: str
    size: str = ""
    """Of the object that it is about: salient, small, or scene for counts."""
    count: int | None = None
    """Small objects in the scene."""
    place: str = ""
    """Of the object that it is about; "" where that is nowhere, or not said."""


@dataclass(frozen=True)
class Results:
    """`right` is `(variants, seeds, questions)`, 0 to 1; the same questions for all."""

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    questions: tuple[AskedQuestion, ...]
    right: np.ndarray

    def of(self, variant: str) -> np.ndarray:
        """Return `(seeds, questions)` of one variant."""
        return self.right[self.variants.index(variant)]


Cells = Mapping[tuple[str, int], tuple[Sequence[AskedQuestion], Sequence[float]]]
"""(variant, seed) -> the questions and how right each answer was."""


def gather(cells: Cells, order: Sequence[str]) -> tuple[Results, list[str]]:
    """Return (results of the finished cells, what had to be left out and why).

    Differences are paired by seed, so all variants are compared on the seeds that all of them have;
    a variant without a finished seed is left out.

    Raises UserError when no cell is finished, when two cells were asked other questions, or when no
    seed is finished for all variants.
    """
    seeds_of: dict[str, set[int]] = {name: set() for name in order}
    for name, seed in cells:
        if name in seeds_of:
            seeds_of[name].add(seed)
    said = [f"{name}: no finished cell" for name, seeds in seeds_of.items() if not seeds]
    seeds_of = {name: own for name, own in seeds_of.items() if own}
    variants = tuple(seeds_of)
    if not variants:
        raise UserError("no cell of the study is finished: there is nothing to compare yet")
    seeds = tuple(sorted(set.intersection(*seeds_of.values())))
    if not seeds:
        raise UserError("no seed is finished for all variants yet: " + _listed(seeds_of))
    for name in variants:
        if extra := sorted(seeds_of[name] - set(seeds)):
            said.append(f"{name}: seeds {', '.join(map(str, extra))} have no partners yet")
    questions = tuple(cells[variants[0], seeds[0]][0])
    for name in variants:
        for seed in seeds:
            if tuple(cells[name, seed][0]) != questions:
                raise UserError(
                    f"{name}, seed {seed} was asked other questions than {variants[0]}, seed "
                    f"{seeds[0]}: remove its folder, and it is run again"
                )
    right = []
    for name in variants:
        right.append([cells[name, seed][1] for seed in seeds])
    return Results(variants, seeds, questions, np.array(right, float)), said


def _listed(seeds_of: Mapping[str, set[int]]) -> str:
    return "; ".join(f"{name} has {sorted(seeds)}" for name, seeds in seeds_of.items())


def groups_of(questions: Sequence[AskedQuestion]) -> dict[str, np.ndarray]:
    """Return name of a group -> boolean mask `(questions,)`: all, each type, each size, each type
    and size, each number of small objects, each place.
    """
    names: dict[str, list[bool]] = {}
    for number, question in enumerate(questions):
        for name in _names(question):
            names.setdefault(name, [False] * len(questions))[number] = True
    order = sorted(names, key=lambda name: (GROUP_ORDER.index(_kind(name)), name))
    return {name: np.array(names[name]) for name in order}


ALL = "all"
GROUP_ORDER = ("all", "size", "type", "both", "count", "place")
COUNT, PLACE, SIZE, TYPE, BOTH = "count: ", "place: ", "size: ", "type: ", "both: "


def _names(question: AskedQuestion) -> list[str]:
    found = [ALL, TYPE + question.type]
    if question.size:
        found += [SIZE + question.size, f"{BOTH}{question.type}, {question.size}"]
    if question.count is not None:
        found.append(f"{COUNT}{question.count} small objects")
    if question.place:
        found.append(PLACE + question.place)
    return found


def _kind(name: str) -> str:
    return name.partition(": ")[0]
