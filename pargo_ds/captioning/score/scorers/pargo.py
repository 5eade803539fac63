"""P(caption | image) of a ParGo export: the loss of the global caption, in nats a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pargo_ds.captioning.score.scorers.base import Piece, Scorer
from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
from pargo_ds.evaluation.captions import PROMPTS, summed_loss
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.files.sha256sums import read_hashes


class ParGoLoss(Scorer):
    """Few decoys, because each is a pass through the language model; it does not look at parts."""

    name = "pargo"
    decoys = 3
    scores_parts = False

    def __init__(self, folder: str) -> None:
        from pathlib import Path

        self.hashes = None
        if Path(folder).is_dir():
            self.hashes = read_hashes(Path(folder))
        self.model, self.processor = load_exported(folder)

    def about(self) -> dict[str, Any]:
        """Return the hashes of the weights, and the question."""
        hashes = self.hashes or {}
        weights = {name: value for name, value in hashes.items() if name.endswith(".safetensors")}
        return {"weights": weights, "question": PROMPTS["detailed"]}

    def look(self, image: Image.Image) -> Any:
        """Return the pixels of the image as the model takes them."""
        return self.processor.pixels(image).unsqueeze(0)

    def raw(self, looks: Sequence[Any], pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """Return minus the mean loss (nats a token) of each text under each image."""
        question = f"{IMAGE_PLACEHOLDER}\n{PROMPTS['detailed']}"
        table = np.zeros((len(looks), len(pieces)))
        for column, piece in enumerate(pieces):
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": piece.text},
            ]
            for row, pixels in enumerate(looks):
                loss, tokens = summed_loss(self.model, self.processor, turns, pixels)
                table[row, column] = -loss / tokens
        return table
