"""The slice of a benchmark that a run is asked, and what is made of the answers that came in time."""

from __future__ import annotations

import official_layouts as layouts
import pytest

from pargo_ds.config import EvaluationSection
from pargo_ds.errors import ConfigError
from pargo_ds.evaluation.ask import AskSettings, plan
from pargo_ds.evaluation.benchmark import Answer, ImageRef, Item, Prompt
from pargo_ds.evaluation.benchmarks import BENCHMARKS
from pargo_ds.evaluation.during_training import (
    Slice,
    ask_together,
    choose,
    evaluator,
    figures_of,
    read_slices,
)
from pargo_ds.evaluation.score import score


def question(cluster: int, number: int, images: int = 1) -> Item:
    image = ImageRef(f"{cluster}.png", 1, bytes)
    return Item(id=f"{cluster}/{number}", prompt="", images=(image,) * images, truth="yes",
                cluster=str(cluster))  # fmt: skip


def test_a_slice_holds_whole_clusters_and_is_the_same_for_any_order_of_the_files():
    items = [question(cluster, number) for cluster in range(50) for number in range(2)]
    found = choose(items, 21)
    clusters = {item.cluster for item in found}
    assert len(found) == 20
    assert {item.id for item in found} == {i.id for i in items if i.cluster in clusters}
    assert {item.id for item in choose(items[::-1], 21)} == {item.id for item in found}
    assert clusters != {str(number) for number in range(10)}  # not only the first files
    assert len(choose(items, 1)) == 2  # one cluster at least
    assert not choose([question(1, 1, images=0)], 10)


def test_the_figures_are_those_of_the_scorer_on_all_answers(model, processor, tmp_path):
    section = EvaluationSection(
        benchmarks={"pope": str(layouts.pope(tmp_path)), "vstar": str(layouts.vstar(tmp_path / "v"))},
        batch=4,
    )  # fmt: skip
    slices = read_slices(section, processor)
    evaluate = evaluator(model, processor, slices, section)
    assert evaluate is not None
    rounds: list[None] = []
    figures = evaluate(lambda: rounds.append(None))
    assert len(rounds) == sum(len(part.units) for part in slices)  # the watchdog hears of each one
    for part in slices:
        answers = ask_together(model, processor, part, lambda: False)
        found = score(part.benchmark, part.items, [answers[item.id] for item in part.items], 500)
        headline = found["figures"][found["headline"]]
        name = f"evaluation_{part.benchmark.name}"
        assert figures[f"{name}_questions"] == len(part.items)
        assert [figures[name], figures[f"{name}_low"], figures[f"{name}_high"]] == [
            headline["value"], headline["low"], headline["high"]
        ]  # fmt: skip
    assert evaluator(model, processor, [], section) is None


def test_when_time_is_up_whole_images_are_scored_and_no_others(model, processor, tmp_path):
    benchmark = BENCHMARKS["mme"]
    items = benchmark.read(layouts.mme(tmp_path, pairs=3), Prompt(max_new_tokens=2))
    units = plan(processor, items, Prompt(max_new_tokens=2), AskSettings(rows=3))
    part = Slice(benchmark, Prompt(max_new_tokens=2), items, units)
    answers = ask_together(model, processor, part, lambda: True)
    assert set(answers) == {items[place].id for place in units[0]}  # one round, of one rank
    odd = {item.id: Answer(id=item.id, text="yes") for item in items[:3]}
    figures = figures_of(part, odd)
    assert figures["evaluation_mme_questions"] == 2
    assert figures["evaluation_mme"] == 50  # of a pair one is right, so no point for both
    assert figures_of(part, {}) == {"evaluation_mme_questions": 0}


def test_an_unknown_prompt_is_named(processor, tmp_path):
    section = EvaluationSection(benchmarks={"mme:best": str(tmp_path)})
    with pytest.raises(ConfigError, match="mme has no prompt 'best'; there are official, llava"):
        read_slices(section, processor)


@pytest.mark.parametrize("name", ["mmvet", "vqav2test"])
def test_what_a_run_cannot_score_is_refused_before_it(name, processor, tmp_path):
    section = EvaluationSection(benchmarks={name: str(tmp_path)})
    with pytest.raises(ConfigError, match=f"{name} needs a .*, which a run does not have"):
        read_slices(section, processor)
