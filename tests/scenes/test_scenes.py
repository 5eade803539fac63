"""Scenes: the pixels are where the truth says, what is held out stays out, and the seed decides
everything.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pargo_ds.data.shards.mds import read_samples
from pargo_ds.errors import GlyphError
from pargo_ds.scenes import glyphs
from pargo_ds.scenes.colours import dominant_colour
from pargo_ds.scenes.compose import PLACES, draw_background, draw_scene, overlap
from pargo_ds.scenes.concepts import held_out_concepts, vocabulary, with_article
from pargo_ds.scenes.glyphs import glyph, prepare_style
from pargo_ds.scenes.splits import SPLITS, ScenesPlan, compose_split, scene_samples

PLAN = ScenesPlan(seed=3, train=60, validation=40, size=192)


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_are_where_the_truth_says(split: str) -> None:
    for scene in compose_split(PLAN, split):
        drawn = np.asarray(draw_scene(scene, glyph))
        changed = (drawn != draw_background(scene.background, scene.size)).any(axis=-1)
        allowed = np.zeros_like(changed)
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            inside = changed[y0:y1, x0:x1]
            assert inside.mean() > 0.1, thing
            assert inside.any(axis=0)[[0, 1, -2, -1]].any(), "the box is too wide"
            assert inside.any(axis=1)[[0, 1, -2, -1]].any(), "the box is too high"
            allowed[y0:y1, x0:x1] = True
        assert not (changed & ~allowed).any(), f"{scene.id}: something is drawn outside every box"


@pytest.mark.parametrize("size", [64, 192, 256, 336])
def test_objects_lie_in_their_places_and_never_overlap(size: int) -> None:
    for scene in compose_split(ScenesPlan(train=400, validation=2, size=size), "train"):
        assert 2 <= len(scene.small) <= 4
        assert (
            len({thing.place for thing in scene.objects})
            == len(scene.objects)
            == len(scene.names())
        )
        for number, thing in enumerate(scene.objects):
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= size
            assert 0 <= y0 < y1 <= size
            column, row = int((x0 + x1) / 2 * 3 / size), int((y0 + y1) / 2 * 3 / size)
            assert PLACES[thing.place] == (column, row), thing
            assert not any(overlap(thing.box, other.box) for other in scene.objects[:number])
        longest = [
            max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) for thing in scene.objects
        ]
        assert min(longest[:1]) > 1.5 * max(longest[1:]), "the salient object is clearly larger"


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_concepts_never_appear_in_training(seed: int) -> None:
    plan = ScenesPlan(seed=seed, train=300, validation=200)
    held_out = set(held_out_concepts(seed))
    assert 0.12 < len(held_out) / len(vocabulary()) < 0.18
    shown = {
        split: set.union(*(scene.names() for scene in compose_split(plan, split)))
        for split in SPLITS
    }
    assert not shown["train"] & held_out
    assert shown["validation"] & held_out
    assert shown["validation"] - held_out
    assert set(plan.description()["held_out_concepts"]) == held_out
    for scene in compose_split(plan, "validation"):
        assert all(thing.held_out == (thing.name in held_out) for thing in scene.objects)


def test_seed_decides_everything() -> None:
    first, again = (list(scene_samples(PLAN, "validation")) for _ in range(2))
    assert first == again
    other = ScenesPlan(seed=4, train=60, validation=40, size=192)
    assert first[0].images != next(iter(scene_samples(other, "validation"))).images


def test_samples_do_not_depend_on_the_number_of_workers() -> None:
    assert list(scene_samples(PLAN, "train", workers=2)) == list(
        scene_samples(PLAN, "train", workers=1)
    )


def test_samples_hold_the_truth() -> None:
    for sample in scene_samples(PLAN, "validation"):
        sample.to_mds()  # fits the format
        assert Image.open(io.BytesIO(sample.images[0])).size == (192, 192)
        assert sample.license == "CC-BY-SA-4.0"
        assert sample.meta["split"] == "validation"
        asked = sample.meta["questions"]
        assert [turn["content"].removeprefix("<image>\n") for turn in sample.turns[::2]] == [
            q["question"] for q in asked
        ]
        assert [turn["content"] for turn in sample.turns[1::2]] == [q["answer"] for q in asked]
        assert {"name", "size", "place", "box", "colour", "held_out"} == set(
            sample.meta["objects"][0]
        )


def test_plan_refuses_what_cannot_be() -> None:
    for wrong, reason in [
        ({"train": 1}, "train is 1 scenes"),
        ({"size": 32}, "at least 64"),
        ({"styles": ("crayon",)}, "expected one or more, once each, of openmoji, noto, fluent"),
        ({"hold_out_style": "noto"}, "not among the styles"),
        ({"hold_out_style": "openmoji"}, "leaves none to train on"),
    ]:
        with pytest.raises(ValueError, match=reason):
            ScenesPlan(**wrong)


def test_held_out_style_is_kept_from_training() -> None:
    plan = ScenesPlan(styles=("openmoji", "noto", "fluent"), hold_out_style="noto")
    assert plan.styles_of("train") == ["openmoji", "fluent"]
    assert plan.styles_of("validation") == ["noto"]


def test_missing_apt_and_npm_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs.shutil, "which", lambda tool: None)
    with pytest.raises(GlyphError, match="fetched with apt-get, which this machine lacks"):
        prepare_style("noto", tmp_path)
    with pytest.raises(GlyphError, match="fetched with npm, which this machine lacks"):
        prepare_style("fluent", tmp_path)
    with pytest.raises(GlyphError, match="unknown style 'crayon'"):
        prepare_style("crayon", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failed_download_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "npm"
    tool.write_text("#!/bin/sh\necho no network >&2\nexit 7\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(GlyphError, match="ended with 7: no network"):
        prepare_style("fluent", tmp_path / "cache")
    assert not (tmp_path / "cache" / "fluent").exists()


def test_every_concept_has_a_image_and_an_article() -> None:
    assert 250 < len(vocabulary()) < 400
    for name in vocabulary():
        assert max(glyph("openmoji", name).size) == glyphs.MASTER_SIZE
        assert len(name.split()) <= 2
    assert [with_article(n) for n in ("apple", "unicorn", "hourglass", "small owl")] == [
        "an apple", "a unicorn", "an hourglass", "a small owl",
    ]  # fmt: skip


def test_colour_ignores_outlines_and_stays_silent_when_in_doubt() -> None:
    image = Image.new("RGBA", (256, 256))
    pen = ImageDraw.Draw(image)
    pen.ellipse((8, 8, 248, 248), fill="#d22f27", outline="black", width=7)
    assert dominant_colour(image) == "red"
    pen.rectangle((60, 60, 190, 190), fill="#5c9e31")
    assert dominant_colour(image) is None
    assert dominant_colour(Image.new("RGBA", (256, 256), "black")) == "black"
    assert dominant_colour(Image.new("RGBA", (256, 256))) is None


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("apple", "red"),
        ("frog", "green"),
        ("lemon", "yellow"),
        ("pig", "pink"),
        ("elephant", "grey"),
        ("boot", "brown"),
        ("panda", None),
    ],
)
def test_known_things_have_their_colour(name: str, colour: str | None) -> None:
    assert dominant_colour(glyph("openmoji", name)) == colour


def test_command_line_builds_the_whole_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tools.build_shards import main

    arguments = [
        "scenes",
        str(tmp_path / "out"),
        "--train",
        "6",
        "--validation",
        "4",
        "--size",
        "96",
        "--workers",
        "1",
    ]
    assert main(arguments) == 0
    assert "6 scenes to train on" in capsys.readouterr().out
    assert len(list(read_samples(tmp_path / "out" / "train"))) == 6
    assert json.loads((tmp_path / "out" / "split.json").read_text())["counts"] == {
        "train": 6,
        "validation": 4,
    }
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--force", "--styles", "crayon"]) == 2
    assert len(list(read_samples(tmp_path / "out" / "train"))) == 6, (
        "a refused command must not touch the old folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
