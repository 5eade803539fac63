"""Words that the run's own images teach: linear detectors over EfficientNet's features, cross-fitted.

For each word of the captions a ridge regression says from the features of an image (or of a cell)
whether the word is said of it. Two halves of the images learn apart, and each judges the other's
captions: so a caption never vouches for itself, and one that differs from what the others say of
like images stands out. Needs hundreds of images that share words; knows no order of words.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pargo_ds.captioning.language import SMALL_WORDS
from pargo_ds.captioning.score.scorers.base import Piece, Scorer
from pargo_ds.captioning.score.scorers.features import PLACES, FeatureExtractor, ImageFeatures
from pargo_ds.captioning.text_rules import words_of
from pargo_ds.errors import CaptionError

RIDGE = 30.0
LEAST_TIMES, MOST_WORDS = 8, 3000
"""A word is learned when it comes so often, the commonest so many of them."""
FEWEST_IMAGES = 100


class Half:
    """Detectors learned from one half of the images, for whole images or for parts: the running
    sums of a ridge regression, in which an image more costs no memory.
    """

    def __init__(self, words: dict[str, int], features: int) -> None:
        self.words = words
        self.inputs = np.zeros((features + 1, features + 1))
        self.products = np.zeros((features + 1, len(words)))

    def add(self, feature: NDArray[np.floating], text: str) -> None:
        """Learn from a text and what it is about."""
        known = [self.words[word] for word in set(words_of(text)) if word in self.words]
        row = np.append(feature, 1.0)
        self.inputs += np.outer(row, row)
        self.products[:, known] += row[:, None]

    def solve(self) -> NDArray[np.float64]:
        """Return (features + 1, words) weights."""
        penalty = RIDGE * np.eye(len(self.inputs))
        penalty[-1, -1] = 1e-6  # the constant is not shrunk
        return np.linalg.solve(self.inputs + penalty, self.products)


class Learned(Scorer):
    """See above. `weights` maps the half that judges an image and the kind of piece to detectors."""

    name = "learned"
    learns = True

    def __init__(self) -> None:
        self.features = FeatureExtractor()
        self.words: dict[str, int] = {}
        self.weights: dict[tuple[int, bool], NDArray[np.float64]] = {}
        self.half = 0

    def about(self) -> dict[str, Any]:
        """Return the hash of the weights, and the settings."""
        return {"weights": self.features.sha256, "ridge": RIDGE, "least_times": LEAST_TIMES}

    def look(self, image: Image.Image) -> ImageFeatures:
        """Return the features of the image and of its cells."""
        return self.features(image)

    def fit(self, pairs: Iterator[tuple[str, ImageFeatures, list[Piece]]]) -> None:
        """Learn the commonest words, by both halves of the images. Raises as the base says."""
        kept = list(pairs)
        if len(kept) < FEWEST_IMAGES:
            raise CaptionError(
                f"the scorer learned learns from the run's own captions and needs at least "
                f"{FEWEST_IMAGES} of them; there are {len(kept)}. Use the other scorers"
            )
        counts = Counter[str]()
        for _, _, pieces in kept:
            for piece in pieces:
                counts.update(set(words_of(piece.text)))
        common = [word for word, times in counts.most_common() if times >= LEAST_TIMES]
        common = [word for word in common if word not in SMALL_WORDS][:MOST_WORDS]
        self.words = {word: number for number, word in enumerate(common)}
        keys = itertools.product((0, 1), (False, True))
        halves = {key: Half(self.words, 1280) for key in keys}
        for image, seen, pieces in kept:
            for piece in pieces:
                half = halves[1 - _half_of(image), piece.cell is not None]
                half.add(seen.features[PLACES[piece.cell]], piece.text)
        self.weights = {key: half.solve() for key, half in halves.items()}

    def of_image(self, image: str) -> Learned:
        """Return a copy with the detectors of the half that the image is not in."""
        judge = object.__new__(Learned)
        judge.__dict__.update(self.__dict__)
        judge.half = _half_of(image)
        return judge

    def raw(self, looks: Sequence[ImageFeatures], pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Return the mean of the words that are detected least (half of them, at least one)."""
        table = np.zeros((len(looks), len(pieces)))
        for number, piece in enumerate(pieces):
            known = [self.words[word] for word in set(words_of(piece.text)) if word in self.words]
            if not known:
                continue
            weights = self.weights[self.half, piece.cell is not None][:, known]
            features = np.stack([seen.features[PLACES[piece.cell]] for seen in looks])
            found = features @ weights[:-1] + weights[-1]  # (looks, known)
            lowest = np.sort(found, axis=1)[:, : max(1, len(known) // 2)]
            table[:, number] = lowest.mean(axis=1)
        return table


def _half_of(image: str) -> int:
    return int(image[:8], 16) % 2
