"""Held-out data: no image on both sides, whatever the ids, and a share that stays when data is
added.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny import COLOURS, draw

from pargo_ds.data.building.delivery import Destination, build
from pargo_ds.data.building.plan import Plan
from pargo_ds.data.building.splits import groups_of, in_share, validation_samples
from pargo_ds.data.shards.mds import read_samples
from pargo_ds.data.sources import Coco, Llava
from pargo_ds.errors import BuildError

IMAGES = 24


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each image under two names: its bytes are what counts."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        for name in (f"{number}.png", f"copy-{number}.png"):
            (folder / name).write_bytes(draw(COLOURS[number % 6], number % 9, 32 + number))
    return folder


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": f"What is {number}?"},
        {"from": "gpt", "value": f"It is {number}."},
    ]


def sides(source: Coco | Llava, validation: float | int, out: Path) -> dict[str, list]:
    build(Plan(source=source, validation=validation), Destination(out), said=lambda _: None)
    return {split: list(read_samples(out / split)) for split in ("train", "validation")}


def shown(samples: list) -> set[bytes]:
    return {image for sample in samples for image in sample.images}


@pytest.mark.parametrize("validation", [0.25, 20])
@pytest.mark.parametrize("kind", ["questions", "captions", "copies", "several images"])
def test_no_image_is_on_both_sides(
    tmp_path: Path, images: Path, kind: str, validation: float | int
) -> None:
    path = tmp_path / "in.json"
    if kind == "captions":
        listed = [{"id": number, "file_name": f"{number}.png"} for number in range(IMAGES)]
        annotations = [
            {"image_id": n % IMAGES, "caption": f"Caption {n}."} for n in range(5 * IMAGES)
        ]
        path.write_text(json.dumps({"images": listed, "annotations": annotations}))
        found = sides(Coco(files=(str(path),), image_folder=str(images), captions="all", chunk_inputs=17), validation,
                      tmp_path / "out")  # fmt: skip
    else:
        entries = []
        for number in range(4 * IMAGES):
            first = number % IMAGES
            named: object = f"{'copy-' if kind == 'copies' and number % 2 else ''}{first}.png"
            if kind == "several images" and number % 4 == 0:
                named = [named, f"{(first // 4 * 4 + number // IMAGES) % IMAGES}.png"]
            entries.append({"id": f"q{number}", "image": named, "conversations": talk(number)})
        path.write_text(json.dumps(entries))
        found = sides(
            Llava(files=(str(path),), image_folder=str(images), chunk_inputs=17),
            validation,
            tmp_path / "out",
        )
    assert not shown(found["train"]) & shown(found["validation"])
    assert len(shown(found["train"])) + len(shown(found["validation"])) == IMAGES
    assert {split: len(samples) > 0 for split, samples in found.items()} == {
        "train": True,
        "validation": True,
    }
    assert validation == 0.25 or 20 <= len(found["validation"]) < 60


def test_groups_agree_with_a_plain_search() -> None:
    """3,000 samples drawn from few images and ids, against neighbours visited one after another."""
    rng = np.random.default_rng(3)
    images = [sorted(set(rng.integers(0, 6000, rng.integers(1, 4)).tolist())) for _ in range(3000)]
    ids = rng.integers(10_000, 14_000, 3000).astype(np.uint64)
    units = np.array([own[0] for own in images], np.uint64)
    links = np.array([(own[0], other) for own in images for other in own[1:]], np.uint64)
    groups = groups_of(units, ids, links)
    holders: dict[int, list[int]] = {}
    for number, own in enumerate(images):
        for unit in (*own, int(ids[number])):
            holders.setdefault(unit, []).append(number)
    expected = [-1] * 3000
    for start in range(3000):
        waiting = [start] if expected[start] < 0 else []
        while waiting:
            number = waiting.pop()
            if expected[number] < 0:
                expected[number] = start
                waiting += [
                    other for unit in (*images[number], int(ids[number])) for other in holders[unit]
                ]
    assert (
        len(set(zip(groups.tolist(), expected, strict=True)))
        == len(set(expected))
        == len(set(groups.tolist()))
    )
    assert Counter(expected).most_common(1)[0][1] > 3


def test_a_share_is_one_of_groups_whatever_their_size() -> None:
    # A group's key is the smallest of its digests, so large groups have small keys: 20,000 groups
    # of 1 and of 50.
    rng = np.random.default_rng(5)
    for size in (1, 50):
        keys = rng.integers(0, 2**64 - 1, (20_000, size), np.uint64, endpoint=True).min(axis=1)
        assert abs(in_share(keys, 0.1).mean() - 0.1) < 0.008  # four deviations


def test_data_that_hangs_together_is_not_split() -> None:
    groups = np.array([7] * 9 + [5], np.uint64)
    kept = np.ones(10, np.bool_)
    found = {
        wanted: validation_samples(groups[:1].repeat(3), kept[:3], wanted).sum()
        for wanted in (1e-9, None)
    }
    assert set(found.values()) == {0}
    with pytest.raises(BuildError, match=r"9 of 9 samples hang together"):
        validation_samples(groups[:9], kept[:9], 3)
    with pytest.raises(BuildError, match="only 10; hold out fewer"):
        validation_samples(groups, kept, 10)
