"""What every captioner of our own is."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pargo_ds.captioning.answer import Caption
from pargo_ds.captioning.ask.captions import OK


@dataclass(frozen=True)
class Described:
    """What a captioner made of an image: a caption, or another outcome with a note that says why."""

    caption: Caption | None
    outcome: str = OK
    note: str = ""


class Captioner(abc.ABC):
    """Base of the captioners."""

    batch = 1
    """Images that it describes at once."""

    @abc.abstractmethod
    def about(self) -> dict[str, Any]:
        """Return all that its captions depend on beside the image, as plain JSON: `model`, hashes of
        weights, settings. It goes into the provenance of each caption.
        """

    @abc.abstractmethod
    def describe(self, images: Sequence[Image.Image]) -> list[Described]:
        """Return what it makes of each RGB image, at most `batch` of them."""
