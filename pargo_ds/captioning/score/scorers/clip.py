"""A CLIP or SigLIP that transformers loads. Long texts go in by sentences, never cut in silence."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pargo_ds.captioning.answer import CELLS
from pargo_ds.captioning.score.scorers.base import Piece, Scorer, cell_box
from pargo_ds.captioning.score.scorers.features import PLACES
from pargo_ds.errors import CaptionError

MARGIN = 0.25
"""Of a cell's width that its crop shows more on each side."""
SENTENCE = re.compile(r"(?<=[.!?;])\s+")


class Clip(Scorer):
    """The mean over a text's sentences of their cosines with the image, or the crop of a cell."""

    name = "clip"

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModel, AutoProcessor

        try:
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
        except (OSError, ValueError) as error:
            raise CaptionError(f"{folder} cannot be loaded as a CLIP: {error}") from error
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise CaptionError(f"{folder} is a {type(model).__name__}; expected a CLIP or SigLIP")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.folder, self.model = folder, model.to(device)
        self.most = model.config.text_config.max_position_embeddings
        # SigLIP learned from texts that were padded to their full length.
        self.padding = "max_length" if "siglip" in model.config.model_type else True
        self._known: dict[str, NDArray[np.float32]] = {}

    def about(self) -> dict[str, Any]:
        """Return hash of the configuration, sizes of the weights, and the settings."""
        config = hashlib.sha256((Path(self.folder) / "config.json").read_bytes()).hexdigest()
        files = {path.name: path.stat().st_size for path in Path(self.folder).glob("*.safetensors")}
        return {"config": config, "weights": files, "margin": MARGIN, "tokens": self.most}

    def look(self, image: Image.Image) -> NDArray[np.float32]:
        """Return (10, width) unit vectors of the whole image and of its cells."""
        views = [image.crop(cell_box(cell, *image.size, margin=MARGIN)) for cell in (None, *CELLS)]
        return self._vectors("get_image_features", images=views)

    def raw(
        self, looks: Sequence[NDArray[np.float32]], pieces: Sequence[Piece]
    ) -> NDArray[np.float64]:
        """Return the mean cosine of each text's sentences with the piece's view of each image."""
        table = np.zeros((len(looks), len(pieces)))
        for number, piece in enumerate(pieces):
            views = np.stack([look[PLACES[piece.cell]] for look in looks])
            sentences = [self.sentence(text) for text in self.sentences(piece.text)]
            table[:, number] = (views @ np.stack(sentences).T).mean(axis=1)
        return table

    def sentences(self, text: str) -> list[str]:
        """Return the text in pieces that the model reads whole: sentences, a longer one cut at
        words.
        """
        found: list[str] = []
        for sentence in filter(None, SENTENCE.split(text.strip())):
            words = sentence.split()
            while words:
                end = len(words)
                while end > 1 and self._length(" ".join(words[:end])) > self.most:
                    end -= max(1, end // 10)
                found.append(" ".join(words[:end]))
                words = words[end:]
        return found or [text]

    def _length(self, text: str) -> int:
        return len(self.processor.tokenizer(text, truncation=False, verbose=False).input_ids)

    def sentence(self, text: str) -> NDArray[np.float32]:
        """Return (width,) unit vector of a text that fits."""
        if text not in self._known:
            if len(self._known) > 20_000:
                self._known.clear()
            options = {"padding": self.padding, "truncation": True}
            self._known[text] = self._vectors("get_text_features", text=[text], **options)[0]
        return self._known[text]

    def _vectors(self, function: str, **inputs: Any) -> NDArray[np.float32]:
        import torch

        given = self.processor(return_tensors="pt", **inputs).to(self.model.device)
        given.pop("token_type_ids", None)  # of tokenizers that are not CLIP's own
        with torch.inference_mode():
            found = getattr(self.model, function)(**given)
        found = getattr(found, "pooler_output", found)  # transformers 5 gives the whole output
        return torch.nn.functional.normalize(found.float(), dim=-1).cpu().numpy()
