"""What every scorer is, and how its numbers become comparable: against decoys.

A raw score says little: a long text, a common word, a bright image shift it. So each text is also
scored with other images, the decoys, and its score is how many of their standard deviations its own
image lies above their mean (0: no better than a random image). A part is compared with the same cell
of the decoys, and beside the other cells of its own image.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pargo_ds.captioning.answer import CELLS

SPREAD, MOST = 1e-6, 100.0
"""Least standard deviation of decoys, so that a text that no image changes has the score 0; and the
most that a score may be, where all decoys are alike and its own image is not.
"""


class Piece(NamedTuple):
    """A text, and the cell of the image that it is about (None: all of it)."""

    text: str
    cell: str | None = None


class Scorer(abc.ABC):
    """Base of the scorers."""

    name: str
    decoys = 32
    """Other images that each text is compared with; few where a comparison is dear."""
    scores_parts = True
    """Whether it can look at a part of an image."""
    learns = False
    """Whether `fit` teaches it: its scores are then of these captions only."""

    @abc.abstractmethod
    def about(self) -> dict[str, Any]:
        """Return all that its scores depend on, as plain JSON: files with their hashes, settings."""

    @abc.abstractmethod
    def look(self, image: Image.Image) -> Any:
        """Return what it keeps of an RGB image: whatever `raw` needs."""

    @abc.abstractmethod
    def raw(self, looks: Sequence[Any], pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Return (looks, pieces) how well each text fits each image; larger is better. A column of NaN
        says nothing about its text, and so gives it no score.
        """

    def fit(self, pairs: Iterator[tuple[str, Any, list[Piece]]]) -> None:
        """Learn from the run's own captions, each an image's hash, look and pieces; called where
        `learns` says so. Raises CaptionError when they are too few.
        """
        raise NotImplementedError(f"{self.name} learns, but has no fit")

    def of_image(self, image: str) -> Scorer:
        """Return the scorer that may judge an image's captions (one that learns has not learned
        them).
        """
        return self


def against_decoys(own: NDArray[np.float64], decoys: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (pieces,) standard deviations above the decoys' mean; `own` (pieces,), `decoys`
    (decoys, pieces).
    """
    spread = np.maximum(decoys.std(axis=0), SPREAD)
    return np.clip((own - decoys.mean(axis=0)) / spread, -MOST, MOST)


def piece_scores(
    scorer: Scorer, look: Any, bank: Sequence[Any], pieces: Sequence[Piece], other: int = 0
) -> NDArray[np.float64]:
    """Return (pieces, 4) of one image's caption: raw; against the decoys; beside the other cells (0
    for pieces without one); and what decoy `other` gets against the other ones, for comparison.
    """
    table = scorer.raw([look, *bank], pieces)
    beside = np.zeros(len(pieces))
    placed = [number for number, piece in enumerate(pieces) if piece.cell is not None]
    for number in placed:
        piece = pieces[number]
        others = [Piece(piece.text, cell) for cell in CELLS if cell != piece.cell]
        elsewhere = scorer.raw([look], others).T  # (cells, 1)
        beside[number] = against_decoys(table[0, number : number + 1], elsewhere)[0]
    own = against_decoys(table[0], table[1:])
    decoy = against_decoys(table[1 + other], np.delete(table[1:], other, axis=0))
    return np.stack([table[0], own, beside, decoy], axis=1)


def cell_box(
    cell: str | None, width: int, height: int, margin: float = 0.0
) -> tuple[int, int, int, int]:
    """Return (x0, y0, x1, y1) in pixels of a cell with a margin in shares of the cell; of all for
    None.
    """
    if cell is None:
        return 0, 0, width, height
    column, row = CELLS[cell]
    box = []
    for place, size in ((column, width), (row, height)):
        box.append(
            (
                max(0, round((place - margin) * size / 3)),
                min(size, round((place + 1 + margin) * size / 3)),
            )
        )
    (x0, x1), (y0, y1) = box
    return x0, y0, x1, y1
