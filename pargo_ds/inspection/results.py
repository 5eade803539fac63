"""Exports beside each other: figures of benchmarks, differences to the first export with their
intervals, and the questions that changed sides.

Reads folders of answers only, as tools/evaluate.py leaves them; needs no model and no images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmarks import benchmark_named
from pargo_ds.evaluation.score import score_folder, stores_in, with_needs
from pargo_ds.evaluation.store import Store


@dataclass(frozen=True)
class Change:
    """A question that one of two exports answers right and the other one does not."""

    question: str
    """Its id in the benchmark."""
    images: tuple[str, ...]
    prompt: str
    truth: Any
    first: str
    """What the first export said."""
    other: str
    won: bool
    """The other export is the one that is right."""


@dataclass(frozen=True)
class Results:
    """Everything that the page, the JSON file and the Markdown rows show."""

    folders: Mapping[str, str]
    """Folder of answers by the export's name; the first one is what the others are compared to."""
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """By export and benchmark, as `score_folder` gives them; all but the first have `difference`
    where the first was asked the same benchmark.
    """
    changes: Mapping[str, Mapping[str, list[Change]]]
    """By export (not the first) and benchmark."""

    @property
    def first(self) -> str:
        """The name of the export to which the others are compared."""
        return next(iter(self.folders))

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks of all exports, in the order in which they come first."""
        return list(dict.fromkeys(chain.from_iterable(self.scores.values())))


def named_folders(words: list[str]) -> dict[str, Path]:
    """Return folders by name, of words `OUT` or `NAME=OUT`.

    Raises UserError for a name that stands twice.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if name in found:
            raise UserError(f"{name} stands twice; name the exports apart: NAME=OUT")
        if not equals:
            path = word
        found[name] = Path(path).expanduser()
    return found


def collect(folders: Mapping[str, Path]) -> Results:
    """Score all folders, and find what differs from the first one.

    Raises MissingAnswersError where units are missing, OtherAnswersError where a benchmark was
    asked with other questions, UserError for a folder without answers.
    """
    name, first = next(iter(folders.items()))
    scores: dict[str, Mapping[str, Mapping[str, Any]]] = {name: score_folder(first)}
    changes: dict[str, dict[str, list[Change]]] = {}
    own = stores_in(first)
    for other, folder in list(folders.items())[1:]:
        theirs = stores_in(folder)
        common = [benchmark for benchmark in theirs if benchmark in own]
        scores[other] = score_folder(folder, first if common else None)
        changes[other] = {name: changed(name, own[name], theirs[name]) for name in common}
    return Results({key: str(path) for key, path in folders.items()}, scores, changes)


def changed(benchmark: str, first: Store, other: Store) -> list[Change]:
    """Return the questions of a benchmark that one of two exports answers right, in their order.

    Both must have been asked the same ones, which `score_folder` checks.
    """
    judge = with_needs(benchmark_named(benchmark), [first, other]).judge
    items, others = first.items(), other.items()
    own, theirs = first.answers(items)[0], other.answers(others)[0]
    found = []
    for item, asked, one, two in zip(items, others, own, theirs, strict=True):
        before, after = judge(item, one), judge(asked, two)
        if (before.right == 1) == (after.right == 1):
            continue
        found.append(
            Change(
                question=item.id,
                images=tuple(image.name for image in item.images),
                prompt=asked.prompt,
                truth=item.truth,
                first=one.text or before.said or "",
                other=two.text or after.said or "",
                won=after.right == 1,
            )
        )
    return found
