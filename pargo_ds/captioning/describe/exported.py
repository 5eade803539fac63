"""A ParGo export as captioner: one question, answered greedily; a global caption without parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pargo_ds.captioning.answer import read_answer
from pargo_ds.captioning.ask.captions import LENGTH, UNREADABLE
from pargo_ds.captioning.describe.captioner import Captioner, Described
from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
from pargo_ds.evaluation.answers import generate
from pargo_ds.evaluation.ask import weights_digest
from pargo_ds.evaluation.benchmark import Answer
from pargo_ds.evaluation.captions import PROMPTS
from pargo_ds.evaluation.exported import load_exported

QUESTION = PROMPTS["detailed"]


class Exported(Captioner):
    """The captioner `pargo`; `max_tokens` bounds an answer. Raises as `load_exported`."""

    batch = 8

    def __init__(self, folder: str, max_tokens: int) -> None:
        self.model, self.processor = load_exported(folder)
        self.weights, self.max_tokens = weights_digest(Path(folder)), max_tokens

    def about(self) -> dict[str, Any]:
        """Return the hash of the export's files, the question and the bound."""
        return {
            "model": "pargo",
            "weights": self.weights,
            "question": QUESTION,
            "max_tokens": self.max_tokens,
        }

    def describe(self, images: Sequence[Image.Image]) -> list[Described]:
        """Return the answer to each image; one that was cut at `max_tokens` is no caption."""
        question = [{"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{QUESTION}"}]
        answers = generate(
            self.model,
            self.processor,
            [question] * len(images),
            [[image] for image in images],
            max_new_tokens=self.max_tokens,
        )
        return [_described(answer) for answer in answers]


def _described(answer: Answer) -> Described:
    if answer.cut:
        return Described(None, LENGTH, answer.text[:300])
    try:
        return Described(read_answer(answer.text, structured=False))
    except ValueError as error:
        return Described(None, UNREADABLE, str(error))
