"""tools/write_scenes_mme.py: an MME folder whose truth is that of the scenes."""

from __future__ import annotations

import importlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tiny import ROOT

from pargo_ds.evaluation.benchmark import Prompt, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS
from pargo_ds.scenes.compose import PLACES, Thing, compose_scene
from pargo_ds.scenes.yes_no_pairs import pairs_of

NUMBERS = {"two": 2, "three": 3, "four": 4}


@pytest.fixture
def tool(monkeypatch):
    pytest.importorskip("emoji")
    pytest.importorskip("resvg_py")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("write_scenes_mme")


def is_true(question: str, scene: dict) -> bool:
    """Read a question and look it up in the truth of its scene, without the code that wrote it."""
    text = question.removesuffix(" Please answer yes or no.").removesuffix("?")
    things = scene["objects"]
    words = text.removesuffix(" in this image").split()
    if words[:2] == ["Is", "there"]:
        return " ".join(words[3:]) in [thing["name"] for thing in things]
    if words[:2] == ["Are", "there"]:
        small = [thing for thing in things if thing["size"] == "small"]
        return NUMBERS[words[2]] == len(small)
    if text.startswith("Is the large object "):
        return things[0]["size"] == "salient" and things[0]["colour"] == words[-1]
    if text.startswith("Is the object "):
        place = " ".join(words[3:-1])
        return [words[-1]] == [thing["colour"] for thing in things if thing["place"] == place]
    return text in [f"Is the {thing['name']} {thing['place']}" for thing in things]


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_folder_is_one_of_mme_and_tells_the_truth(tool, tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["--scenes", "20", "--seed", "3", "--size", "64"]
    assert tool.main([str(out), *asked]) == 0
    assert "40 questions about 20 images" in capsys.readouterr().out
    body = json.loads((out / "scenes.json").read_text())
    scenes = {scene["id"]: scene for scene in body["scenes"]}
    assert "CC" in body["source"]["license"]
    items = read_items(BENCHMARKS["mme"], out, Prompt(), subset=True)
    assert len(items) == 40
    said = Counter((item.cluster, item.truth) for item in items)
    assert {*said.values()} == {1}, "an image has one yes and one no"
    for item in items:
        scene = scenes[item.cluster.partition("/")[2]]
        assert is_true(item.meta["question"], scene) == (item.truth == "yes"), item.meta
        assert item.images[0].read().startswith(b"\x89PNG")
    tasks = Counter(item.stratum for item in items)
    assert set(tasks) == {"existence", "count", "position", "color"}
    assert min(tasks.values()) >= 6, "tasks take turns"

    assert tool.main([str(out), *asked]) == 2
    assert "exists already" in capsys.readouterr().err
    before = tree(out)
    assert tool.main([str(out), *asked, "--force"]) == 0
    assert tree(out) == before, "the seed decides everything"
    assert (
        tool.main([str(tmp_path / "other"), "--scenes", "20", "--seed", "4", "--size", "64"]) == 0
    )
    texts = [{*each} & {*before} for each in (tree(tmp_path / "other"), before)]
    assert texts[0] != texts[1], "another seed gives other scenes"


def test_a_run_that_ends_early_leaves_nothing(tool, tmp_path, capsys, monkeypatch):
    written = []

    def full_disk(scene, images):
        written.append(scene.id)
        if len(written) == 3:
            raise OSError("no space left")
        return b"an image"

    monkeypatch.setattr(tool, "draw_png", full_disk)
    with pytest.raises(OSError, match="no space left"):
        tool.main([str(tmp_path / "out"), "--scenes", "8", "--size", "64"])
    assert not list(tmp_path.iterdir())
    assert tool.main([str(tmp_path / "out"), "--scenes", "1"]) == 2
    assert "validation is 1 scenes; expected at least 2" in capsys.readouterr().err


def test_words_alone_do_not_say_which_of_the_two_is_true():
    """No place, number, name or colour is asked for with yes much more often than with no."""
    rng = random.Random(0)
    things = [
        Thing(f"thing{n}", 40, 40, colour=["red", "blue", "green", None][n % 4]) for n in range(12)
    ]
    scenes = []
    for number in range(2000):
        salient, *small = rng.sample(things, 3 + number % 3)
        layout = {"id": str(number), "size": 96, "style": "made"}
        scenes.append(compose_scene(rng, salient=salient, small=small, **layout))
    found = pairs_of(scenes, [thing.name for thing in things], "0")
    assert found == pairs_of(scenes, [thing.name for thing in things], "0")
    yes, no = Counter(), Counter()
    for task, pair in found:
        for counter, question in zip((yes, no), pair, strict=True):
            words = question.removesuffix("?").removesuffix(" in this image").split()
            about = {"position": " ".join(words[3:]), "count": words[2]}.get(task, words[-1])
            counter[about] += 1
    places = {*PLACES} - {"in the centre"}  # there small things hardly ever have room: 8 of 5,999
    asked = {
        *places,
        "two",
        "three",
        "four",
        "red",
        "blue",
        "green",
        *(thing.name for thing in things),
    }
    for about in asked:
        share = yes[about] / (yes[about] + no[about])
        assert 0.35 < share < 0.65, f"{about}: {share:.2f}"
