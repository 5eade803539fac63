"""Captioners of our own: what they made is kept, and made once; a ParGo export as captioner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from caption_runs import selected_run
from PIL import Image
from tiny_export import write_export

from pargo_ds.captioning.answer import Caption, Part
from pargo_ds.captioning.describe.captioner import Captioner, Described
from pargo_ds.captioning.describe.describe import describe, make_captioner, parse_captioner
from pargo_ds.captioning.run_files import RunFolder, read_lines
from pargo_ds.captioning.select.select import read_selected
from pargo_ds.errors import CaptionError


class Sizes(Captioner):
    """Says how large an image is; dies when it has described `most` of them."""

    batch = 4

    def __init__(self, most: int = 1000, version: int = 1) -> None:
        self.most, self.version, self.seen = most, version, 0

    def about(self) -> dict[str, Any]:
        return {"model": "sizes", "version": self.version}

    def describe(self, images: Sequence[Image.Image]) -> list[Described]:
        if self.seen + len(images) > self.most:
            raise KeyboardInterrupt
        self.seen += len(images)
        return [self._said(image) for image in images]

    def _said(self, image: Image.Image) -> Described:
        if image.width == 48:
            return Described(None, "too plain", "nothing to say")
        size = f"An image of {image.width} pixels."
        return Described(Caption(size, (Part("centre", "Its middle."),)))


def captions_of(run: RunFolder) -> list[dict]:
    rows = list(read_lines(run.captions))
    for row in rows:
        row["provenance"].pop("time")
    return rows


def quietly(text: str) -> None:
    pass


def test_what_was_described_before_a_kill_is_not_described_again(tmp_path: Path) -> None:
    run = selected_run(tmp_path, 10)
    with pytest.raises(KeyboardInterrupt):
        describe(run, Sizes(most=8), quietly)
    assert not run.captions.exists()
    second = Sizes()
    outcomes = describe(run, second, quietly)
    assert second.seen == 2
    assert outcomes == {"ok": 9, "too plain": 1}
    rows = captions_of(run)
    assert [row["id"] for row in rows] == [sample.id for sample in read_selected(run)]
    by_id = {row["id"]: row for row in rows}
    assert by_id["s005"]["global"] == "An image of 53 pixels."
    assert by_id["s005"]["parts"] == [{"where": "centre", "what": "Its middle."}]
    assert by_id["s005"]["provenance"] == {"model": "sizes", "version": 1}
    assert by_id["s000"]["notes"] == ["nothing to say"]


def test_another_version_describes_anew(tmp_path: Path) -> None:
    run = selected_run(tmp_path, 5)
    describe(run, Sizes(), quietly)
    again, other = Sizes(), Sizes(version=2)
    describe(run, again, quietly)
    describe(run, other, quietly)
    assert (again.seen, other.seen) == (0, 5)
    assert {row["provenance"]["version"] for row in captions_of(run)} == {2}


def test_a_pargo_export_describes_images_the_same_way_each_time(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    from pargo_ds.evaluation.answers import generate
    from pargo_ds.evaluation.exported import load_exported

    folder = write_export(tmp_path / "export", tokenizer_folder)
    run = selected_run(tmp_path, 9)
    captioner = make_captioner(f"pargo:{folder}", 12)
    describe(run, captioner, quietly)
    model, processor = load_exported(folder)
    turns = [{"role": "user", "content": "<image>\nDescribe the picture."}]
    for row, sample in zip(captions_of(run), read_selected(run), strict=True):
        image = captioner_image(sample.images[0])
        (alone,) = generate(model, processor, [turns], [[image]], max_new_tokens=12)
        assert row["outcome"] == ("length" if alone.cut else "ok")
        assert (row["global"] or row["notes"][0]) == alone.text
        assert row["parts"] == []
        assert row["provenance"]["model"] == "pargo"
        assert len(row["provenance"]["weights"]) == 64
    assert len({json.dumps([row["global"], row["notes"]]) for row in captions_of(run)}) > 1


def captioner_image(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize("said", ["guess", "pargo", "pargo:", "truth:x"])
def test_captioners_that_are_none_are_told(said: str) -> None:
    with pytest.raises(CaptionError, match="there are endpoint, truth, detector"):
        parse_captioner(said)


def test_a_folder_that_is_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an exported model"):
        make_captioner(f"pargo:{tmp_path}", 10)
