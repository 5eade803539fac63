"""ConSE (Norouzi et al. 2013): the mean of the label words of what a classifier sees, against the
words of a text, in a space of words.

Image side: EfficientNet-Lite0's classes of ImageNet. Words: the table of a language model's tokens,
which is a weak space of words (its note in docs/captioning.md); it needs no training and no network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pargo_ds.captioning.language import SMALL_WORDS
from pargo_ds.captioning.score.scorers.base import Piece, Scorer
from pargo_ds.captioning.score.scorers.features import PLACES, FeatureExtractor, ImageFeatures
from pargo_ds.captioning.text_rules import words_of
from pargo_ds.errors import CaptionError

TOP = 10
"""Classes that are averaged, by their probabilities, as in the paper."""


class Words:
    """Vectors of words: the mean of their tokens' rows in a model's input table, centred."""

    def __init__(self, folder: str) -> None:
        from safetensors import safe_open
        from transformers import AutoTokenizer

        path = Path(folder) / "model.safetensors"
        if not path.is_file():
            raise CaptionError(
                f"{path} is not there; make it with tools/prepare_demo_parts.py runs/parts, or name "
                "another language model's folder: conse:FOLDER"
            )
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        with safe_open(path, "pt") as file:
            table = file.get_tensor("model.embed_tokens.weight").float().numpy()
        self.table = table - table.mean(axis=0)
        self._known: dict[str, NDArray[np.float32]] = {}

    def word(self, word: str) -> NDArray[np.float32]:
        """Return (width,) unit vector of a word as it stands within a text."""
        if word not in self._known:
            ids = self.tokenizer(f" {word}", add_special_tokens=False).input_ids
            self._known[word] = _unit(self.table[ids].mean(axis=0))
        return self._known[word]

    def text(self, text: str) -> NDArray[np.float32]:
        """Return (width,) unit vector of a text's words, small ones left out."""
        words = [word for word in words_of(text) if word not in SMALL_WORDS] or words_of(text)
        return _unit(sum((self.word(word) for word in words), np.zeros(self.table.shape[1])))


class Conse(Scorer):
    """See above."""

    name = "conse"

    def __init__(self, folder: str) -> None:
        from timm.data import ImageNetInfo

        self.features, self.words = FeatureExtractor(), Words(folder)
        info = ImageNetInfo("imagenet-1k")
        labels = [info.index_to_description(number) for number in range(info.num_classes())]
        names = [re.split(r"[,:(]", label)[0] for label in labels]
        self.labels = np.stack([self.words.text(name) for name in names])  # (1000, width)
        self.head = (
            self.features.model.classifier.weight.detach().numpy(),
            self.features.model.classifier.bias.detach().numpy(),
        )

    def about(self) -> dict[str, Any]:
        """Return hashes of the weights and of the word vectors, and the settings."""
        return {"weights": self.features.sha256, "words": self.words.sha256, "top": TOP}

    def look(self, image: Image.Image) -> NDArray[np.float32]:
        """Return (10, width) vectors of what is seen in the whole and in each cell."""
        seen: ImageFeatures = self.features(image)
        logits = seen.features @ self.head[0].T + self.head[1]
        return np.stack([self._mean_label(row) for row in logits])

    def _mean_label(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        best = np.argsort(logits)[-TOP:]
        shares = np.exp(logits[best] - logits[best].max())
        return _unit(shares @ self.labels[best])

    def raw(
        self, looks: Sequence[NDArray[np.float32]], pieces: Sequence[Piece]
    ) -> NDArray[np.float64]:
        """Return the cosine of each text's words with what is seen where the piece says."""
        table = np.zeros((len(looks), len(pieces)))
        for number, piece in enumerate(pieces):
            views = np.stack([look[PLACES[piece.cell]] for look in looks])
            table[:, number] = views @ self.words.text(piece.text)
        return table


def _unit(vector: Any) -> NDArray[np.float32]:
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)
