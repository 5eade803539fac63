"""COCO's caption files: images in the file's order, every caption accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import COLOURS, draw

from pargo_ds.data.sources import Coco, Outcome, SampleTransform, outcomes
from pargo_ds.errors import SourceError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number:012}.png").write_bytes(draw(COLOURS[number], number))
    return folder


def document() -> dict:
    """Six images with two captions each, the annotations in another order than the images."""
    images = [
        {"id": 100 - number, "file_name": f"{number:012}.png", "height": 64} for number in range(6)
    ]
    annotations = [
        {
            "id": 7 * number + again,
            "image_id": 100 - number,
            "caption": f"Caption {again} of {number}.\n",
        }
        for again in range(2)
        for number in (3, 1, 5, 0, 4, 2)
    ]
    return {"info": {}, "images": images, "annotations": annotations}


def read(folder: Path, content: object, **options) -> list[Outcome]:
    path = folder.parent / "captions.json"
    path.write_text(json.dumps(content))
    source = Coco(files=(str(path),), image_folder=str(folder), chunk_inputs=4, **options)
    return [
        outcome
        for chunk in source.chunks()
        for outcome in outcomes(source, chunk.payload, SampleTransform())
    ]


def test_text_bytes_and_order_come_back(images: Path) -> None:
    found = read(images, document(), caption_as="detailed")
    assert [outcome.id for outcome in found] == ["100", "99", "98", "97", "96", "95"]
    for number, outcome in enumerate(found):
        assert outcome.sample.images == [draw(COLOURS[number], number)]
        assert outcome.sample.captions == {"detailed": f"Caption 0 of {number}.\n"}
        assert outcome.sample.meta == {"other_captions": [f"Caption 1 of {number}.\n"]}


def test_all_captions_become_samples_with_ids_of_their_own(images: Path) -> None:
    found = read(images, document(), captions="all")
    assert [outcome.id for outcome in found][:4] == ["100", "100-2", "99", "99-2"]
    texts = [outcome.sample.captions["coarse"] for outcome in found]
    assert sorted(texts) == sorted(
        annotation["caption"] for annotation in document()["annotations"]
    )


def test_faults_are_rejects_and_nothing_else_changes(images: Path) -> None:
    content = document()
    content["images"][1]["file_name"] = "../x.png"
    content["images"][2]["id"] = [1]
    content["images"].append({"id": "lonely", "file_name": "000000000000.png"})
    content["images"].append("x")
    content["annotations"] += [{"image_id": 5, "caption": "x"}, {"image_id": 100, "caption": 3}, 7]
    found = read(images, content)
    assert [outcome.kind for outcome in found] == [
        "", "path leaves its folder", "does not fit", "", "", "", "text empty", "does not fit",
        "image missing", "image missing", "image missing", "text empty", "does not fit",
    ]  # fmt: skip
    assert found[-1].where == {"file": str(images.parent / "captions.json"), "annotation": 15}


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": {}, "annotations": []}])
def test_other_documents_are_refused(images: Path, content: object) -> None:
    with pytest.raises(SourceError, match=r"captions\.json is no COCO caption file"):
        read(images, content)


def test_two_images_of_one_id_are_an_error_that_names_both(images: Path) -> None:
    content = document()
    content["images"][4]["id"] = 98.0  # what pandas makes of 98
    with pytest.raises(
        SourceError,
        match=r"images 3 \(000000000002.png\) and 5 \(000000000004.png\) both have the id 98",
    ):
        read(images, content)
    content = document()
    content["images"].append(dict(content["images"][2]))
    assert [outcome.id for outcome in read(images, content)] == [
        "100",
        "99",
        "98",
        "97",
        "96",
        "95",
        "98",
    ]


def test_ids_join_as_numbers_and_as_text(images: Path) -> None:
    content = document()
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    assert all(outcome.sample is not None for outcome in read(images, content))


def test_an_id_that_lost_digits_joins_nothing(images: Path) -> None:
    content = document()
    content["images"][0]["id"] = 2**53 + 1
    content["annotations"] = [{"image_id": float(2**53 + 2), "caption": "Of which?"}]
    content["images"][1]["id"] = 2**53 + 2
    assert {outcome.kind for outcome in read(images, content)} == {"text empty", "image missing"}


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [], "annotations": [], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "a.png", "file_name": "b.png"}], "annotations": []}',
        '{"images": [], "annotations": [{"image_id": 1, "caption": "a", "caption": "b"}]}',
    ],
)
def test_a_key_that_stands_twice_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(SourceError, match=r"c.json: .*the key \w+ stands twice in one object"):
        list(Coco(files=(str(tmp_path / "c.json"),), image_folder=str(tmp_path)).chunks())


def karpathy(splits: tuple[str, ...]) -> dict:
    images = [
        {"filepath": "train", "filename": f"{number:012}.png", "cocoid": 7 + number, "split": split, "imgid": number,
         "sentences": [{"raw": f"Caption {again} of {number}.", "tokens": ["x"]} for again in range(2)]}
        for number, split in enumerate(splits)
    ]  # fmt: skip
    return {"images": images, "dataset": "coco"}


def test_karpathys_files_are_read_by_split(images: Path) -> None:
    content = karpathy(("train", "test", "restval", "val"))
    folder = images.parent / "above"
    folder.mkdir()
    images.rename(folder / "train")
    found = read(folder, content, splits=("train", "restval"), captions="all")
    assert [outcome.id for outcome in found] == ["7", "7-2", "9", "9-2"]
    assert [outcome.sample.captions["coarse"] for outcome in found][2:] == [
        "Caption 0 of 2.",
        "Caption 1 of 2.",
    ]
    with pytest.raises(
        SourceError, match=r"several splits \(restval: 1, test: 1, train: 1, val: 1\).*--splits"
    ):
        read(folder, content)
    with pytest.raises(SourceError, match="has no split trian; it has"):
        read(folder, content, splits=("trian",))
    assert len(read(folder, karpathy(("train",) * 3))) == 3
    with pytest.raises(SourceError, match="leave out --splits"):
        read(folder, document(), splits=("train",))
