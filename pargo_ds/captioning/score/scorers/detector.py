"""Of the things that a text names, how many are seen: precision in CHAIR's sense, by a detector.

Only the nouns of COCO's 80 classes are looked for (photos/coco.py). About a text that names none of
them this scorer says nothing. A part's things are looked for in its cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pargo_ds.captioning.answer import CELLS
from pargo_ds.captioning.photos.coco import things_in
from pargo_ds.captioning.photos.detector import LEAST, Box, Detector
from pargo_ds.captioning.score.scorers.base import Piece, Scorer

BESIDE = 0.5
"""What a box counts for a cell that it covers the middle of, though its own middle lies in another."""


def evidence(boxes: Sequence[Box], name: str, cell: str | None) -> float:
    """Return how sure it is that a thing is in the image, or in a cell of it: the confidence of the
    best box (0 without one), less where the box only reaches into the cell.
    """
    best = 0.0
    for box in boxes:
        if box.name == name:
            best = max(best, box.confidence * _share_of_cell(box, cell))
    return best


def _share_of_cell(box: Box, cell: str | None) -> float:
    if cell is None or box.cell == cell:
        return 1.0
    column, row = CELLS[cell]
    x, y = (column + 0.5) / 3, (row + 0.5) / 3
    if box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1:
        return BESIDE
    return 0.0


def precision(boxes: Sequence[Box], piece: Piece) -> float:
    """Return the mean evidence for the things that a text names; NaN when it names none."""
    names = things_in(piece.text)
    if not names:
        return float("nan")
    return sum(evidence(boxes, name, piece.cell) for name in names) / len(names)


class Detections(Scorer):
    """See above."""

    name = "detector"

    def __init__(self, folder: str = "") -> None:
        self.detector = Detector(folder)

    def about(self) -> dict[str, Any]:
        """Return the hash of the weights, and the settings."""
        return {"weights": self.detector.sha256, "least": LEAST, "beside": BESIDE}

    def look(self, image: Image.Image) -> list[Box]:
        """Return the boxes of the image."""
        return self.detector(image)

    def raw(self, looks: Sequence[list[Box]], pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Return the precision of each text in each image; NaN for a text that names nothing."""
        table = np.zeros((len(looks), len(pieces)))
        for row, boxes in enumerate(looks):
            table[row] = [precision(boxes, piece) for piece in pieces]
        return table
