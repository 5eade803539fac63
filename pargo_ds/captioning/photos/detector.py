"""Boxes of COCO's things in a photograph: SSD-MobileNet-V2, run by OpenCV on the CPU.

It is small and old (COCO 2018): it misses small things, and sees mice in lenses. Its numbers measure
how captions fit what it sees, no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pargo_ds.captioning.answer import CELLS
from pargo_ds.captioning.photos.coco import IDS
from pargo_ds.captioning.photos.weights import PARTS, checked, opencv

FOLDER = "runs/parts/detector"
SIDE = 300
"""Pixels of the square image that goes in."""
LEAST = 0.1
"""Confidence of a box that is kept at all."""


class Box(NamedTuple):
    """A thing, the confidence in it (0 to 1), and its edges in shares of the width and height."""

    name: str
    confidence: float
    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        """Its share of the image."""
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)

    @property
    def cell(self) -> str:
        """The cell of the 3 x 3 grid in which its middle lies."""
        column = min(2, int(1.5 * (self.x0 + self.x1)))
        row = min(2, int(1.5 * (self.y0 + self.y1)))
        (name,) = (cell for cell, place in CELLS.items() if place == (column, row))
        return name

    def overlap(self, other: Box) -> float:
        """Return the intersection over the union of two boxes."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        both = max(0.0, width) * max(0.0, height)
        return both / max(1e-9, self.area + other.area - both)


class Detector:
    """The model in a folder that tools/fetch_caption_parts.py has filled.

    Raises CaptionError when OpenCV or the weights are missing, or the weights are other ones.
    """

    def __init__(self, folder: str = "") -> None:
        cv2 = opencv()
        files = PARTS["detector"].files
        home = Path(folder or FOLDER)
        graph, text = (checked(home / Path(name).name, "detector") for name in files)
        self.sha256 = next(iter(files.values()))
        self._cv2, self._net = cv2, cv2.dnn.readNetFromTensorflow(graph, text)

    def __call__(self, image: Image.Image) -> list[Box]:
        """Return the boxes of an RGB image, the surest first."""
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB")))
        self._net.setInput(self._cv2.dnn.blobFromImage(pixels, size=(SIDE, SIDE), crop=False))
        boxes = []
        for _, number, confidence, *edges in self._net.forward()[0, 0].tolist():
            if confidence >= LEAST and int(number) in IDS:
                x0, y0, x1, y1 = (round(min(1.0, max(0.0, edge)), 4) for edge in edges)
                boxes.append(Box(IDS[int(number)], round(confidence, 4), x0, y0, x1, y1))
        return sorted(boxes, key=lambda box: -box.confidence)
