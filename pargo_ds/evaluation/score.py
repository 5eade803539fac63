"""Answers -> figures with intervals, and the difference between two models on the same questions.

Pure but for reading the folders; needs no model, no torch and not the benchmark's files.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Mark, Totals
from pargo_ds.evaluation.benchmarks import BENCHMARKS, benchmark_named
from pargo_ds.evaluation.bootstrap import drawn_weights
from pargo_ds.evaluation.judge import VerdictStore, answers_to_judge, judged_benchmark
from pargo_ds.evaluation.store import ASKED, OtherAnswersError, Store

ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class Counts:
    """Sums and numbers of the marks of each cluster, arrays `(clusters, names)`."""

    names: tuple[str, ...]
    clusters: tuple[str, ...]
    strata: tuple[str, ...]
    sums: np.ndarray
    numbers: np.ndarray

    def totals(self, weights: np.ndarray) -> Totals:
        """Return the totals under weights `(draws, clusters)`."""
        sums, numbers = weights @ self.sums, weights @ self.numbers
        return Totals(
            {name: sums[:, place] for place, name in enumerate(self.names)},
            {name: numbers[:, place] for place, name in enumerate(self.names)},
        )


def counted(marks: Sequence[Mark]) -> Counts:
    """Return the marks summed by cluster and name, both in the order in which they come first."""
    each_once = dict.fromkeys(mark.name for mark in marks)
    names = {name: place for place, name in enumerate(each_once)}
    strata = {mark.item.cluster: mark.item.stratum for mark in marks}
    clusters = {cluster: place for place, cluster in enumerate(strata)}
    sums = np.zeros((len(clusters), len(names)))
    numbers = np.zeros_like(sums)
    for mark in marks:
        place = clusters[mark.item.cluster], names[mark.name]
        sums[place] += mark.value
        numbers[place] += 1
    return Counts(tuple(names), tuple(clusters), tuple(strata.values()), sums, numbers)


def estimates(benchmark: Benchmark, counts: Counts) -> dict[str, float]:
    """Return the figures themselves, without intervals."""
    found = benchmark.figures(counts.totals(np.ones((1, len(counts.clusters)))))
    return {name: float(value[0]) for name, value in found.items()}


def resampled(benchmark: Benchmark, counts: Counts, draws: int) -> dict[str, np.ndarray]:
    """Return the figures in each draw of clusters, arrays `(draws,)`."""
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for weights in drawn_weights(counts.strata, draws=draws):
        for name, values in benchmark.figures(counts.totals(weights)).items():
            parts[name].append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval; draws in which a part was empty do not count."""
    if np.isnan(values).all():  # a figure of parts that the questions do not have
        return math.nan, math.nan
    low, high = np.nanquantile(values, ENDS)
    return float(low), float(high)


def judged(
    rule: Callable[[Item, Answer], Judgement], items: Sequence[Item], answers: Sequence[Answer]
) -> list[Judgement]:
    """Return the rule's judgement of each answer."""
    return [rule(item, answer) for item, answer in zip(items, answers, strict=True)]


def marks_counted(benchmark: Benchmark, items: Sequence[Item], answers: Sequence[Answer]) -> Counts:
    """Return the marks that the benchmark's own rule gives the answers."""
    return counted(list(benchmark.marks(items, judged(benchmark.judge, items, answers))))


def score(
    benchmark: Benchmark, items: Sequence[Item], answers: Sequence[Answer], draws: int = 2000
) -> dict[str, Any]:
    """Return all figures of one model on one benchmark.

    {"figures": {name: {"value", "low", "high"}}, "headline", "unit", "asked", "clusters",
    "unparsed", "empty", "cut", "yes", "close", "other_rules": {name: value}}. `yes` is the share
    of answers read as yes where truths are yes and no, else None; `close` the share of answers
    whose first token might be another one in another batch.
    """
    found = judged(benchmark.judge, items, answers)
    counts = counted(list(benchmark.marks(items, found)))
    values, draw = estimates(benchmark, counts), resampled(benchmark, counts, draws)
    figures = {}
    for name, value in values.items():
        low, high = interval(draw[name])
        figures[name] = {"value": value, "low": low, "high": high}
    others = {}
    for name, rule in benchmark.other_rules.items():
        again = counted(list(benchmark.marks(items, judged(rule, items, answers))))
        others[name] = estimates(benchmark, again)[benchmark.headline]
    return {
        "title": benchmark.title,
        "headline": benchmark.headline,
        "unit": benchmark.unit,
        "rule": benchmark.rule,
        "figures": figures,
        "other_rules": others,
        "clusters": len(counts.clusters),
        **faults(items, answers, found),
    }


def faults(
    items: Sequence[Item], answers: Sequence[Answer], found: Sequence[Judgement]
) -> dict[str, Any]:
    """Return how many answers are of no use, and how the others lean."""
    said = [judgement.said for judgement in found]
    yes = None
    # A judge's reply is read as neither.
    if all(item.truth in ("yes", "no") for item in items) and {"yes", "no"} & {*said}:
        yes = _share([one == "yes" for one in said])
    return {
        "asked": len(items),
        "unparsed": sum(one is None for one in said),
        "empty": sum(not answer.text and not answer.losses for answer in answers),
        "cut": sum(answer.cut for answer in answers),
        "yes": yes,
        "close": _share([answer.margin <= 1 for answer in answers if answer.margin is not None]),
    }


def _share(flags: Sequence[bool]) -> float | None:
    """The share of the flags that are set; None without any flag."""
    if not flags:
        return None
    return sum(flags) / len(flags)


def compare(
    benchmark: Benchmark,
    items: Sequence[Item],
    answers: Sequence[Answer],
    others: Sequence[Answer],
    draws: int = 2000,
) -> dict[str, dict[str, float]]:
    """Return each figure of the first answers minus that of the others, clusters drawn for both at
    once.
    """
    own = marks_counted(benchmark, items, answers)
    their = marks_counted(benchmark, items, others)
    first, second = estimates(benchmark, own), estimates(benchmark, their)
    one, other = resampled(benchmark, own, draws), resampled(benchmark, their, draws)
    result = {}
    for name in first:
        low, high = interval(one[name] - other[name])
        result[name] = {"value": first[name] - second[name], "low": low, "high": high}
    return result


def stores_in(out: Path) -> dict[str, Store]:
    """Return the benchmarks that were asked into a folder. Raises UserError when there are none."""
    found = {path.parent.name: Store(path.parent) for path in sorted(out.glob(f"*/{ASKED}"))}
    if not found:
        raise UserError(f"{out} holds no answers; ask with tools/evaluate.py EXPORT --benchmark")
    return {name: found[name] for name in BENCHMARKS if name in found}


def with_needs(benchmark: Benchmark, stores: Sequence[Store]) -> Benchmark:
    """Return the benchmark with what it needs, so far as the folders have it: a judge's verdicts, answers
    that hold a box.
    """
    found = judged_benchmark(benchmark, stores)
    if found.needs != "boxes":
        return found
    items = stores[0].items()
    answers, _ = stores[0].answers(items)
    if all(one.said is None for one in judged(found.judge, items, answers)):
        return found
    return dataclasses.replace(found, needs="")


def score_folder(out: Path, against: Path | None = None) -> dict[str, Any]:
    """Return the scores of every benchmark in a folder, with differences to another folder's
    answers.

    Those that need a judge, a server or boxes, and had none, are left out; see `unscored`.

    Raises MissingAnswersError when units are missing; UserError when the folders have nothing in
    common.
    """
    stores, others = stores_in(out), _others_in(against)
    if against is not None and not set(stores) & set(others):
        raise UserError(f"{out} and {against} have no benchmark in common")
    scores = {}
    for name, store in stores.items():
        benchmark = _judged_as_in(name, store, others.get(name))
        items, asked = store.items(), store.asked()
        answers, heads = store.answers(items)
        if benchmark.needs:  # `unscored` tells of it
            continue
        scores[name] = score(benchmark, items, answers) | {
            "prompt": asked["prompt"]["name"],
            "images": asked["settings"]["images"],
            "complete": not asked["expected"] or asked["number"] in asked["expected"],
            "halved": sum(head["halved"] for head in heads),
            "judged": benchmark.judge is not benchmark_named(name).judge,
        }
        if name in others:
            theirs = others[name].items()
            same_questions(items, theirs, out, against)
            their_answers, _ = others[name].answers(theirs)
            scores[name]["difference"] = compare(benchmark, items, answers, their_answers)
    return scores


def _others_in(against: Path | None) -> dict[str, Store]:
    """The answers to compare with, by benchmark; none where nothing is compared."""
    if against is None:
        return {}
    return stores_in(against)


def _judged_as_in(name: str, *stores: Store | None) -> Benchmark:
    """The benchmark with the rule that its answers in these folders need; None is no folder."""
    there = [store for store in stores if store is not None]
    return with_needs(benchmark_named(name), there)


WAYS = {
    "judge": "a judge must grade all answers: --score OUT --judge URL --judge-model NAME",
    "server": "its server keeps the truths: --submission OUT writes what it takes",
    "boxes": "no answer holds a box: it is for models that were trained to answer with boxes",
}
"""How a benchmark's needs are met."""


def unscored(out: Path, against: Path | None = None) -> list[str]:
    """Return a line for each benchmark that `score_folder` left out, or whose judge has not said all, with
    what to do.
    """
    lines = []
    others = _others_in(against)
    for name, store in stores_in(out).items():
        benchmark = _judged_as_in(name, store, others.get(name))
        number, title = store.asked()["number"], f"{benchmark.title} ({name})"
        verdict_store = VerdictStore(store)
        if benchmark.needs:
            lines.append(f"{title}: {number:,} questions, not scored: {WAYS[benchmark.needs]}")
        elif verdict_store.asked() is not None and (missing := answers_to_judge(verdict_store)):
            lines.append(
                f"{title}: {len(missing):,} of {number:,} answers have no verdict of the judge yet;"
                " the figures above are by words. The same command goes on"
            )
    return lines


def same_questions(
    items: Sequence[Item], others: Sequence[Item], out: Path, against: Path | None
) -> None:
    """Raises OtherAnswersError unless both folders asked the same questions (prompts may differ)."""
    one = [(item.id, item.truth) for item in items]
    two = [(item.id, item.truth) for item in others]
    if one != two:
        raise OtherAnswersError(
            f"{out} and {against} asked {len(one)} and {len(two)} questions that are not the same "
            "ones; a difference would mean nothing"
        )


def report(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores as a table of text."""
    return "\n\n".join(_section(name, found) for name, found in scores.items())


def _section(name: str, found: Mapping[str, Any]) -> str:
    lines = [_title(name, found), _counts(found)]
    difference = found.get("difference", {})
    for figure, values in found["figures"].items():
        line = f"  {figure:<36}{_shown(values)}"
        if figure == found["headline"]:
            line += f" {found['unit']}"
        if figure in difference:
            line += f"   difference {_shown(difference[figure], sign='+')}"
        lines.append(line)
    lines += [f"  {rule:<36}{value:8.2f}" for rule, value in found["other_rules"].items()]
    if found["judged"]:
        lines.append(f"  {found['rule']}")
    return "\n".join(lines)


def _title(name: str, found: Mapping[str, Any]) -> str:
    """What was asked, and what makes the figures incomparable with others."""
    line = f"{found['title']} ({name}), prompt {found['prompt']}"
    if found["images"] != "real":
        line += f", images {found['images']}"
    if not found["complete"]:
        line += " - PART OF IT, not comparable"
    return line


def _counts(found: Mapping[str, Any]) -> str:
    """How many questions stand behind the figures, and the faults of their answers."""
    line = (
        f"  {found['asked']:,} questions, {found['clusters']:,} images or sets; "
        f"unparsed {found['unparsed']}, empty {found['empty']}, cut {found['cut']}"
    )
    if found["yes"] is not None:
        line += f", yes-ratio {found['yes']:.1%}"
    if found["close"] is not None:
        line += f", {found['close']:.1%} within rounding"
    if found["halved"]:
        line += f", {found['halved']} batches halved"
    return line


def _shown(values: Mapping[str, float], sign: str = "") -> str:
    return f"{values['value']:{sign}8.2f} [{values['low']:{sign}.2f}, {values['high']:{sign}.2f}]"
