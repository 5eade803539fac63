"""Questions about scenes with known truth: exact match, the blind baseline, and accuracy tables."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pargo_ds.data.shards.schema import Sample

PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one scene; `type` and `size` are the rows and columns of the report's
    table.
    """

    scene: int
    """Position of the scene among the samples that the questions were read from."""
    question: str
    answer: str
    type: str
    size: str
    held_out: bool = False
    """It names or asks for a concept that no training scene shows."""
    place: str = ""
    """Where the object is; "" where the shards do not say it, for counts and what is not there."""


def questions_of(samples: Iterable[Sample]) -> list[Question]:
    """Return all questions of the samples' `meta["questions"]`, in order.

    Raises ValueError naming the sample when a question lacks one of its fields.
    """
    found = []
    for scene, sample in enumerate(samples):
        for number, entry in enumerate(sample.meta.get("questions", [])):
            try:
                fields = {name: str(entry[name]) for name in ("question", "answer", "type", "size")}
            except KeyError as error:
                raise ValueError(
                    f"sample {sample.id}: meta['questions'][{number}] has no {error}; expected question, "
                    "answer, type and size, as tools/build_shards.py writes them for composed scenes"
                ) from error
            fields["place"] = str(entry.get("place", ""))
            found.append(Question(scene=scene, held_out=bool(entry.get("held_out")), **fields))
    return found


def normalise(text: str) -> str:
    """Return what exact match compares: lower case, no punctuation, single spaces. "The Dog." ->
    "the dog".
    """
    return " ".join(PUNCTUATION.sub(" ", text.lower()).split())


def is_right(answer: str, truth: str) -> bool:
    """Return whether answer and truth match exactly after `normalise`."""
    return normalise(answer) == normalise(truth)


def blind_answers(train: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """Return the best answers without looking: the commonest training answer per question text.

    A text that was never asked in training gets the commonest answer of its type, a type never seen
    the commonest answer of all. Ties go to the answer that comes first in the alphabet, so that the
    baseline is deterministic.

    Raises ValueError when there is no training question.
    """
    if not train:
        raise ValueError(
            "no training questions: the blind baseline needs meta['questions'] of the train shards"
        )
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for item in train:
        answer = normalise(item.answer)
        by_text[normalise(item.question)][answer] += 1
        by_type[item.type][answer] += 1
        overall[answer] += 1
    best_text = {text: _commonest(counts) for text, counts in by_text.items()}
    best_type = {kind: _commonest(counts) for kind, counts in by_type.items()}
    fallback = _commonest(overall)
    answers = []
    for item in asked:
        of_type = best_type.get(item.type, fallback)
        answers.append(best_text.get(normalise(item.question), of_type))
    return answers


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def accuracy_table(asked: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """Return the share of right answers: {"overall", "by_type", "by_size", "by_type_and_size":
    {type: {size: share}}, "by_concept": {"seen" | "held_out": share}}.

    Raises ValueError when answers and questions differ in number, or there are none.
    """
    if not asked or len(asked) != len(answers):
        raise ValueError(
            f"{len(asked)} questions and {len(answers)} answers; expected as many of each"
        )
    right = [is_right(answer, item.answer) for item, answer in zip(asked, answers, strict=True)]
    return _table(asked, right, lambda values: sum(values) / len(values))


def count_table(asked: Sequence[Question]) -> dict[str, Any]:
    """Return how many questions stand behind each figure of `accuracy_table`, in the same shape."""
    return _table(asked, [True] * len(asked), len)


def _table(asked: Sequence[Question], values: Sequence[bool], figure: Any) -> dict[str, Any]:
    types: dict[str, list[bool]] = defaultdict(list)
    sizes: dict[str, list[bool]] = defaultdict(list)
    concepts: dict[str, list[bool]] = defaultdict(list)
    both: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item, value in zip(asked, values, strict=True):
        concept = "held_out" if item.held_out else "seen"
        types[item.type].append(value)
        sizes[item.size].append(value)
        concepts[concept].append(value)
        both[item.type][item.size].append(value)
    return {
        "overall": figure(list(values)),
        "by_type": _figures(types, figure),
        "by_size": _figures(sizes, figure),
        "by_concept": _figures(concepts, figure),
        "by_type_and_size": {kind: _figures(found, figure) for kind, found in sorted(both.items())},
    }


def _figures(groups: dict[str, list[bool]], figure: Any) -> dict[str, Any]:
    return {name: figure(found) for name, found in sorted(groups.items())}


def whole_scenes(questions: Sequence[Question], most: int) -> list[Question]:
    """Return the questions of the first scenes, whole scenes only, at most `most` of them (but at
    least one scene's).
    """
    chosen: list[Question] = []
    for scene in sorted({item.scene for item in questions}):
        own = [item for item in questions if item.scene == scene]
        if chosen and len(chosen) + len(own) > most:
            break
        chosen += own
    return chosen
