"""Decisions: text rules, votes of scorers, wrong parts cut out; planted faults measure the filter."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from caption_runs import selected_run
from tiny import ROOT

from pargo_ds.captioning.decide.decide import Settings, decide, decide_row, wilson
from pargo_ds.captioning.run_files import (
    Row,
    RunFolder,
    read_lines,
    write_lines,
    write_object,
)
from pargo_ds.captioning.score.planted import FAULTS, plant
from pargo_ds.captioning.score.scores import Scores, texts_hash
from pargo_ds.captioning.text_rules import (
    TextRules,
    global_problems,
    part_problems,
    without_opening,
)
from pargo_ds.errors import CaptionError

WHOLE = (
    "A red car and two green trees stand in front of a white house with a blue door. "
    "Three people walk on the pavement on the left of the road."
)
PARTS = [
    {"where": "left", "what": "Three people in dark coats on the left, one with a dog."},
    {"where": "centre", "what": "A red car with four doors, seen from the side."},
    {"where": "top right", "what": "A white house with a blue door."},
]


def caption(number: int = 0, **changes) -> Row:
    row = {
        "id": f"c{number}",
        "image": f"{number:064x}",
        "outcome": "ok",
        "global": WHOLE,
        "parts": [dict(part) for part in PARTS],
        "coarse": "A car.",
        "notes": [],
        "provenance": {},
    }
    return {**row, **changes}


def decided(row: Row, **scores: list[float]) -> Row:
    """The decision where every score below 0 is among the lowest."""
    own = {
        name: Scores(row["id"], texts_hash(row), values[0], tuple(values[1:]))
        for name, values in scores.items()
    }
    limits = {name: {"global": 0.0, "part": 0.0} for name in scores}
    return decide_row(row, own, limits, Settings())


def test_a_good_caption_is_kept_whole_and_becomes_one_text() -> None:
    decision = decided(caption())
    assert decision["kept"]
    assert decision["reasons"] == {}
    assert decision["detailed"] == (
        f"{WHOLE} Three people in dark coats on the left, one with a dog. In the centre: a red car "
        "with four doors, seen from the side. At the top right: a white house with a blue door."
    )


@pytest.mark.parametrize(
    "text, rule",
    [
        ("I'm sorry, but I cannot describe this image in any detail.", "refusal"),
        ("As an AI language model I have no eyes, so nothing is seen here.", "refusal"),
        ('{"global": "A red car stands in front of a house."}', "leftover"),
        ("A red car stands in front of a **large** house in the street.", "leftover"),
        ("A red car <image> stands in front of a house in the street.", "leftover"),
        ("See https://example.com for a red car in front of a house.", "leftover"),
        ("A red car. " * 6, "repetition"),
        ("A red car stands in front of a large house and the", "cut off"),
        ("A red car.", "too short"),
        ("Красная машина стоит перед белым домом с синей дверью.", "not English"),
        ("Ein rotes Auto steht vor einem weißen Haus, daneben gehen drei Leute zum Markt.",
         "not English"),
    ],
)  # fmt: skip
def test_text_rules_name_what_they_found(text: str, rule: str) -> None:
    assert rule in global_problems(text, TextRules())


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        "Two men shake hands; behind them hangs a sign that says “Open 24/7”.",
        "A woman's hand holds a cup of coffee (with milk) above a wooden table in the sun.",
        "There is no person in the room. A lamp hangs above an empty chair, and a cat sleeps below.",
    ],
)
def test_text_rules_leave_ordinary_captions_alone(text: str) -> None:
    assert global_problems(text, TextRules()) == {}


def test_a_part_may_be_short_but_not_empty_of_words() -> None:
    assert part_problems("A dog.", TextRules()) == {}
    assert "part length" in part_problems("Dog.", TextRules())


def test_openings_that_say_nothing_are_cut_and_the_rest_stays() -> None:
    assert without_opening("The image shows a red car.") == "A red car."
    assert without_opening("In this photo, we see two dogs.") == "Two dogs."
    assert (
        without_opening("The image of a saint hangs there.") == "The image of a saint hangs there."
    )


def test_one_vote_of_two_does_not_decide_but_is_kept_as_a_reason() -> None:
    decision = decided(caption(), one=[-1.0, 1, 1, 1], other=[1.0, 1, 1, 1])
    assert decision["kept"]
    assert decision["weak"] == {"global one": "-1.000 is below 0.000"}


def test_two_votes_drop_the_caption_and_all_reasons_are_kept() -> None:
    row = caption(**{"global": WHOLE.rstrip(".")})
    decision = decided(row, one=[-1.0, 1, 1, 1], other=[-2.0, 1, 1, 1])
    assert not decision["kept"]
    assert set(decision["reasons"]) == {"global one", "global other", "cut off"}


def test_a_wrong_part_is_cut_out_and_the_caption_stays() -> None:
    decision = decided(caption(), one=[1.0, 1, -1, 1], other=[1.0, 1, -1, 1])
    assert decision["kept"]
    assert [part["what"] for part in decision["parts"]] == [PARTS[0]["what"], PARTS[2]["what"]]
    assert decision["cut"][0]["part"] == 1
    assert set(decision["cut"][0]["reasons"]) == {"part one", "part other"}
    assert "red car with four doors" not in decision["detailed"]


def test_a_part_that_comes_twice_is_kept_once() -> None:
    decision = decided(caption(parts=[PARTS[1], PARTS[1]]))
    assert len(decision["parts"]) == 1
    assert "said before" in decision["cut"][0]["reasons"]


def test_what_has_no_caption_is_dropped_with_its_outcome() -> None:
    row = caption(outcome="refused", parts=[], notes=["I cannot describe this."], **{"global": ""})
    assert decided(row)["reasons"] == {"refused": "I cannot describe this."}


def test_wilson_is_that_of_the_textbook() -> None:
    """10 of 100 and 0 of 10, as R's prop.test(..., correct=FALSE) gives them."""
    assert wilson(10, 100) == pytest.approx((0.05522914, 0.17436566), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_changes_what_it_says_and_nothing_else(kind: str) -> None:
    donor = {"global": "A cow stands in a meadow. It is brown.",
             "parts": [{"where": "centre", "what": "A brown cow."}]}  # fmt: skip
    row = caption()
    for seed in range(20):
        planted = FAULTS[kind](row, donor, random.Random(seed))
        assert planted is not None
        copy, guilty = planted
        assert row == caption(), "the original is not touched"
        changed = [n for n, part in enumerate(copy["parts"]) if part not in row["parts"]]
        if guilty == -1:
            assert copy["global"] != WHOLE
            assert changed == ([0] if kind == "swapped image" else [])
        else:
            assert copy["global"] == WHOLE
            assert changed == [guilty]
            if kind == "left/right":
                assert copy["parts"][guilty]["where"] in ("right", "top left")
                assert "left" not in copy["parts"][guilty]["what"]


def test_planting_is_a_function_of_seed_and_captions(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    others = {"global": "Another text about two things.", "parts": [PARTS[1]]}
    write_lines(path, [caption(n, **(others if n % 2 else {})) for n in range(50)])
    first = list(plant(path, 10, seed=1))
    assert first == list(plant(path, 10, seed=1))
    assert first != list(plant(path, 10, seed=2))
    assert {row["fault"] for row in first} == set(FAULTS)
    assert 2 <= len({row["of"] for row in first}) <= 25


def scored(run: RunFolder, name: str, rows: list[Row], planted: bool, good: float) -> None:
    """Scores that know the truth: 1 for what is right, `good` less for a guilty piece."""
    folder = run.scores / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").write_text("{}")

    def lines() -> Iterator[Row]:
        for number, row in enumerate(rows):
            noise = number % 7 / 100
            guilty = row.get("guilty", -2)
            values = [
                1 + noise - good * (piece == guilty) for piece in range(-1, len(row["parts"]))
            ]
            pairs = [[value, value, 0.0, 0.0] for value in values]
            yield {
                "id": row["id"],
                "texts": texts_hash(row),
                "global": pairs[0],
                "parts": pairs[1:],
            }

    write_lines(folder / f"{'planted' if planted else 'captions'}-00000.jsonl", lines())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    other = {"global": "A cow stands in a meadow with two trees. It is brown and it eats grass.",
             "parts": [{"where": "bottom left", "what": "A brown cow with white spots."},
                       {"where": "top", "what": "Two tall trees."}]}  # fmt: skip
    write_lines(run.captions, [caption(n, **(other if n % 2 else {})) for n in range(200)])
    return run


def test_recall_is_that_of_the_scorer_and_text_rules_find_their_own_kinds(run: RunFolder) -> None:
    account = decide(run, Settings(), [], plants=100)
    assert account["planted"]["cut off"]["share"] == 1.0
    assert account["planted"]["repeated"]["share"] == 1.0
    assert account["planted"]["colour"]["share"] == 0.0
    assert account["originals"]["dropped"]["found"] == 0
    rows = list(read_lines(run.captions))
    scored(run, "wise", rows, False, 0)
    scored(run, "wise", list(read_lines(run.planted)), True, good=5.0)
    account = decide(run, Settings(lowest=1, lowest_parts=1), plants=100)
    assert account["scorers"] == ["wise"]
    for kind in FAULTS:
        found = account["planted"][kind]
        assert found["share"] == 1.0, kind
        assert found["low"] == pytest.approx(wilson(found["all"], found["all"])[0])


def test_percentiles_hold_within_their_kind(run: RunFolder) -> None:
    """Parts that all score lower than whole captions do not go because of that."""
    folder = run.scores / "low"
    folder.mkdir(parents=True)
    (folder / "about.json").write_text("{}")
    rows = list(read_lines(run.captions))
    write_lines(run.planted, plant(run.captions, 10))
    lines = [
        {"id": row["id"], "texts": texts_hash(row), "global": [0, 10 + n / 1000, 0, 0],
         "parts": [[0, n / 1000, 0, 0]] * len(row["parts"])} for n, row in enumerate(rows)
    ]  # fmt: skip
    write_lines(folder / "captions-00000.jsonl", lines)
    scored(run, "low", list(read_lines(run.planted)), True, 0)
    account = decide(run, Settings(lowest=5, lowest_parts=5))
    assert account["captions"] - account["kept"] == 10
    assert account["parts_cut"] == sum(len(row["parts"]) for row in rows[:10])


def test_scores_of_other_captions_are_refused(run: RunFolder) -> None:
    rows = list(read_lines(run.captions))
    write_lines(run.planted, plant(run.captions, 10))
    rows[3] = {**rows[3], "global": "Something else."}
    scored(run, "old", rows, False, 0)
    with pytest.raises(CaptionError, match="scores of old are not those of caption c3"):
        decide(run, Settings())
    with pytest.raises(CaptionError, match="nobody has not scored .* there are old"):
        decide(run, Settings(), ["nobody"])


def test_another_threshold_gives_another_decision_and_touches_nothing_else(run: RunFolder) -> None:
    before = run.captions.read_bytes()
    assert decide(run, Settings())["kept"] == 200
    strict = Settings(text=TextRules(least_words=40))
    assert decide(run, strict)["kept"] == 100
    assert run.captions.read_bytes() == before


MEASURE = """
import json, sys, time
from pathlib import Path
from pargo_ds.captioning.decide.decide import Settings, decide
from pargo_ds.captioning.report.report import report
from pargo_ds.captioning.run_files import RunFolder
from pargo_ds.resident import resident_mib
begun, run = time.process_time(), RunFolder(Path(sys.argv[1]))
account = decide(run, Settings(), plants=400)
report(run)
peak = resident_mib()
print(json.dumps([account["captions"], time.process_time() - begun, peak]))
"""


def measured(folder: Path, count: int) -> tuple[float, float]:
    """(seconds of CPU, peak MiB) of deciding about so many captions with two scorers, and of the
    report; the captions share ten images.
    """
    run = selected_run(folder, 10)
    images = list(read_lines(run.selected))
    write_lines(run.selected, (images[n % 10] for n in range(count)))
    write_object(run.money, {"spent": 0.0, "answers": 0, "maybe_paid": []})
    other = {"global": "A cow stands in a meadow with two trees. It is brown and it eats grass."}
    rows = [caption(n, **(other if n % 2 else {})) for n in range(1000)]
    many = ({**rows[n % 1000], "id": f"c{n}", "image": f"{n * 977:064x}"} for n in range(count))
    write_lines(run.captions, many)
    write_lines(run.planted, plant(run.captions, 400))
    for name in ("one", "two"):
        scored(run, name, read_lines(run.captions), False, 0)
        scored(run, name, read_lines(run.planted), True, 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", MEASURE, str(run.path)], capture_output=True,
                             text=True, env=environment, check=True)  # fmt: skip
    found, seconds, peak = json.loads(process.stdout)
    assert found == count
    return seconds, peak


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("count", "bound"),
    [
        pytest.param(40_000, 30, marks=pytest.mark.slow),
        pytest.param(100_000, 60, marks=pytest.mark.soak),
    ],
)
def test_memory_of_decide_and_report_stays_flat_with_more_captions(
    tmp_path: Path, count: int, bound: float
) -> None:
    """Captions that were kept would be 1 kB each."""
    _, small = measured(tmp_path / "small", 5_000)
    seconds, large = measured(tmp_path / "large", count)
    print(f"{seconds:.1f} s of CPU, {small:.0f} and {large:.0f} MiB")
    assert large < 1024
    # Scores and decoys' scores, 8 bytes a piece, stay of one scorer at a time in the report: 4 pieces
    # x 90,000 x 16 bytes = 6 MB, and numpy's copies of them for the histograms.
    assert large - small < bound
