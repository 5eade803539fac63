"""A caption from detected boxes: the things and their number, then what is where. A plain template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from pargo_ds.captioning.answer import CELLS, Caption, Part, place_phrase
from pargo_ds.captioning.describe.captioner import Captioner, Described
from pargo_ds.captioning.photos.coco import NUMBERS, plural_of
from pargo_ds.captioning.photos.detector import Box, Detector
from pargo_ds.scenes.concepts import with_article

NOTHING = "nothing detected"
"""The outcome of an image in which no thing of COCO is seen."""
NAMED = 0.5
"""Confidence from which a thing is named."""
SAME = 0.6
"""Intersection over union from which two boxes are taken for one thing, whatever they are called."""
LARGE, SMALL = 0.25, 0.02
"""Shares of the image from which a thing is called large, and below which it is called small."""
TEMPLATE = 1
"""Version of the sentences; another one gives other captions."""


def things_of(boxes: Sequence[Box]) -> list[Box]:
    """Return the boxes that are named, the surest first, each thing once."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.confidence):
        if box.confidence >= NAMED and all(box.overlap(other) < SAME for other in kept):
            kept.append(box)
    return kept


def caption_of(boxes: Sequence[Box]) -> Caption | None:
    """Return the caption of an image with these boxes; None when none of them is to be named.

    The global caption counts the things, largest first, and says where the largest one is; each
    cell in which things have their middle has a part for each kind of them.
    """
    things = things_of(boxes)
    if not things:
        return None
    largest_first = sorted(things, key=lambda box: -box.area)
    counts = Counter(box.name for box in largest_first)  # keeps the order of the first ones
    phrases = [counted(name, number) for name, number in counts.items()]
    verb = "is" if next(iter(counts.values())) == 1 else "are"
    whole = f"There {verb} {_listed(phrases)} in this photograph."
    first = largest_first[0]
    whole += f" The largest thing is {_one(first.name)}, {place_phrase(first.cell)}."
    return Caption(whole, tuple(_parts(things)))


def _parts(things: Sequence[Box]) -> list[Part]:
    parts = []
    for cell in CELLS:
        here: dict[str, list[Box]] = {}
        for box in things:
            if box.cell == cell:
                here.setdefault(box.name, []).append(box)
        for name, some in here.items():
            size = _size(sum(box.area for box in some) / len(some))
            text = counted(name, len(some), size)
            parts.append(Part(cell, f"{text[0].upper()}{text[1:]}."))
    return parts


def counted(name: str, number: int, size: str = "") -> str:
    """Return so many things in words: "one large cat", "two people", "two pairs of skis"."""
    said = name if number == 1 else plural_of(name)
    if name in ("skis", "scissors"):
        said = f"pair of {name}" if number == 1 else f"pairs of {name}"
    figure = NUMBERS[number] if number < len(NUMBERS) else str(number)
    return " ".join(filter(None, (figure, size, said)))


def _one(name: str) -> str:
    if name in ("skis", "scissors"):
        return f"a pair of {name}"
    return with_article(name)


def _listed(phrases: Sequence[str]) -> str:
    *others, last = phrases
    if not others:
        return last
    return f"{', '.join(others)} and {last}"


def _size(area: float) -> str:
    if area >= LARGE:
        return "large"
    return "small" if area < SMALL else ""


class Detected(Captioner):
    """The captioner `detector`: what the model of a folder sees, in the template."""

    def __init__(self, folder: str = "") -> None:
        self.detector = Detector(folder)

    def about(self) -> dict[str, Any]:
        """Return the hash of the weights, and the settings."""
        weights = self.detector.sha256
        return {"model": "detector", "weights": weights, "named": NAMED, "template": TEMPLATE}

    def describe(self, images: Sequence[Image.Image]) -> list[Described]:
        """Return the caption of each image, or that nothing was detected."""
        return [self._described(image) for image in images]

    def _described(self, image: Image.Image) -> Described:
        caption = caption_of(self.detector(image))
        if caption is None:
            return Described(None, NOTHING, f"no thing with a confidence of {NAMED:g} or more")
        return Described(caption)
