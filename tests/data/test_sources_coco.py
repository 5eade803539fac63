"""COCO's caption files: pictures in the file's order, every caption accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import COLOURS, draw

from pargo_ds.data.sources import Coco, Finish, Outcome, SourceError, outcomes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number:012}.png").write_bytes(draw(COLOURS[number], number))
    return folder


def document() -> dict:
    """Six pictures with two captions each, the annotations in another order than the pictures."""
    images = [{"id": 100 - number, "file_name": f"{number:012}.png", "height": 64} for number in range(6)]
    annotations = [
        {"id": 7 * number + again, "image_id": 100 - number, "caption": f"Caption {again} of {number}.\n"}
        for again in range(2)
        for number in (3, 1, 5, 0, 4, 2)
    ]
    return {"info": {}, "images": images, "annotations": annotations}


def read(folder: Path, content: object, **options) -> list[Outcome]:
    path = folder.parent / "captions.json"
    path.write_text(json.dumps(content))
    source = Coco(files=(str(path),), pictures=str(folder), chunk_inputs=4, **options)
    return [outcome for chunk in source.chunks() for outcome in outcomes(source, chunk.payload, Finish())]


def test_text_bytes_and_order_come_back(pictures: Path) -> None:
    found = read(pictures, document(), caption_as="detailed")
    assert [outcome.id for outcome in found] == ["100", "99", "98", "97", "96", "95"]
    for number, outcome in enumerate(found):
        assert outcome.sample.images == [draw(COLOURS[number], number)]
        assert outcome.sample.captions == {"detailed": f"Caption 0 of {number}.\n"}
        assert outcome.sample.meta == {"other_captions": [f"Caption 1 of {number}.\n"]}


def test_all_captions_become_samples_with_ids_of_their_own(pictures: Path) -> None:
    found = read(pictures, document(), captions="all")
    assert [outcome.id for outcome in found][:4] == ["100", "100-2", "99", "99-2"]
    texts = [outcome.sample.captions["coarse"] for outcome in found]
    assert sorted(texts) == sorted(annotation["caption"] for annotation in document()["annotations"])


def test_faults_are_rejects_and_nothing_else_changes(pictures: Path) -> None:
    content = document()
    content["images"][1]["file_name"] = "../x.png"
    content["images"][2]["id"] = [1]
    content["images"].append({"id": "lonely", "file_name": "000000000000.png"})
    content["images"].append("x")
    content["annotations"] += [{"image_id": 5, "caption": "x"}, {"image_id": 100, "caption": 3}, 7]
    found = read(pictures, content)
    assert [outcome.kind for outcome in found] == [
        "", "path leaves its folder", "does not fit", "", "", "", "text empty", "does not fit",
        "picture missing", "picture missing", "picture missing", "text empty", "does not fit",
    ]  # fmt: skip
    assert found[-1].where == {"file": str(pictures.parent / "captions.json"), "annotation": 15}


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": {}, "annotations": []}])
def test_other_documents_are_refused(pictures: Path, content: object) -> None:
    with pytest.raises(SourceError, match=r"captions\.json is no COCO caption file"):
        read(pictures, content)
