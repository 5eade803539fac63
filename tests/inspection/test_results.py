"""Exports beside each other: what the page says follows from the answers, and nothing else."""

from __future__ import annotations

import html
import json
import random
from html.parser import HTMLParser

import pytest

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, ImageRef, Item
from pargo_ds.evaluation.score import score_folder
from pargo_ds.evaluation.store import OtherAnswersError, Store, digest, item_lines
from pargo_ds.inspection.results import collect, named_folders
from pargo_ds.inspection.results_page import MOST_CHANGES, interval, markdown, write_results


def questions(images: int, prompt: str = "<image>\nIs it red?") -> list[Item]:
    """Two questions of MME an image, in two tasks."""
    return [
        Item(
            id=f"{task}/{number}/{truth}", prompt=prompt, truth=truth,
            images=(ImageRef(f"{task}/{number}.png", 9, bytes),), cluster=f"{task}/{number}",
            stratum=task, groups=(task,),
        )
        for task in ("color", "count")
        for number in range(images)
        for truth in ("yes", "no")
    ]  # fmt: skip


def answer(folder, items: list[Item], texts: list[str], images: str = "real") -> None:
    store = Store(folder / "mme")
    asked = {"prompt": {"name": "official"}, "settings": {"images": images}, "number": len(items),
             "questions": digest(item_lines(items)), "expected": [2374], "units": 1}  # fmt: skip
    store.open(asked, items)
    answers = [Answer(id=item.id, text=text) for item, text in zip(items, texts, strict=True)]
    store.write(0, {"halved": 0}, answers)


class Cells(HTMLParser):
    """The text of all table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        self.inside = tag in ("td", "th")
        self.texts += [""] if self.inside else []

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


@pytest.fixture
def folders(tmp_path):
    items = questions(40)
    rng = random.Random(0)
    right = [item.truth for item in items]
    answer(tmp_path / "a", items, [t if rng.random() < 0.6 else "other" for t in right])
    answer(tmp_path / "b", items, [t if rng.random() < 0.8 else "<b>other" for t in right])
    answer(tmp_path / "blind", items, ["yes"] * len(items), images="shuffled")
    words = [f"A={tmp_path / 'a'}", f"B & C={tmp_path / 'b'}", f"blind={tmp_path / 'blind'}"]
    return named_folders(words)


def test_page_json_and_markdown_show_the_figures_of_the_scorer(folders, tmp_path):
    results = collect(folders)
    page, numbers, rows = write_results(results, tmp_path / "to")
    found = json.loads(numbers.read_text())
    cells = Cells()
    cells.feed(page.read_text())
    a, b, blind = folders.values()
    for name, own in zip(folders, (a, b, blind), strict=True):
        expected = score_folder(own)["mme"]["figures"]
        assert found["scores"][name]["mme"]["figures"] == expected
        for values in expected.values():
            assert interval(values) in cells.texts or f"{interval(values)} *" in cells.texts
    difference = score_folder(b, a)["mme"]["difference"]
    assert found["scores"]["B & C"]["mme"]["difference"] == difference
    assert interval(difference["color"], "+") in cells.texts
    lines = rows.read_text().splitlines()
    assert lines[0] == "| export | MME, total (points) |"
    total = score_folder(blind)["mme"]["figures"]["total"]
    assert lines[4] == f"| blind | {interval(total)}, images shuffled \\* |"


def test_questions_that_changed_sides_are_all_of_them_and_no_others(folders):
    results = collect(folders)
    stores = [Store(folder / "mme") for folder in folders.values()]
    items = stores[0].items()
    right = [
        {item.id for item, said in zip(items, store.answers(items)[0], strict=True)
         if said.text == item.truth}
        for store in stores
    ]  # fmt: skip
    changes = results.changes["B & C"]["mme"]
    assert {one.question for one in changes if one.won} == right[1] - right[0]
    assert {one.question for one in changes if not one.won} == right[0] - right[1]
    assert changes[0].images == (f"{changes[0].question.rsplit('/', 1)[0]}.png",)


def test_what_models_say_is_text_on_the_page_and_long_lists_are_cut(folders, tmp_path):
    results = collect(folders)
    page = write_results(results, tmp_path / "to")[0].read_text()
    assert "<b>other" not in page
    assert html.escape("<b>other") in page
    assert "B &amp; C wins" in page
    cut = len(results.changes["blind"]["mme"]) - MOST_CHANGES
    assert f"and {cut} more in results.json" in page


def test_one_export_alone_has_a_page_and_other_questions_are_refused(folders, tmp_path):
    first = dict([next(iter(folders.items()))])
    assert markdown(collect(first)).startswith("| export | MME, total (points) |\n| --- | ---: |")
    other = questions(39)
    answer(tmp_path / "other", other, ["yes"] * len(other))
    with pytest.raises(OtherAnswersError, match="questions that are not the same"):
        collect({**first, "other": tmp_path / "other"})
    with pytest.raises(UserError, match="a stands twice"):
        named_folders(["a=x", "a=y"])
