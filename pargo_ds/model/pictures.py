"""Pictures on their way to the encoder: any picture to a square of RGB pixels, and which picture belongs to which text.

Axes: a picture is `(3, height, width)` uint8 RGB, or a PIL picture that becomes one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from .configuration_pargo import IMAGE_PLACEHOLDER

RESIZES = ("stretch", "crop", "pad")
PAD_GREY = 127
PIXEL_VERSION = "torch uint8 bicubic antialias"
"""Names the code that makes the pixels, for fingerprints: a change of the pixels changes it."""


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any PIL picture -> RGB: EXIF rotation applied, alpha laid onto white, 16-bit grey scaled."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # PIL would clip 16-bit values at 255
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def to_pixels(picture: Image.Image | torch.Tensor) -> torch.Tensor:
    """PIL picture of any mode, or pixels as they are -> uint8 `(3, height, width)`.

    Raises:
        ValueError: a tensor of another type or shape, or without pixels.
    """
    if isinstance(picture, Image.Image):
        return torch.from_numpy(np.array(to_rgb(picture))).permute(2, 0, 1)  # (3, height, width)
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise ValueError(
            f"pixels of type {picture.dtype} and shape {tuple(picture.shape)}; expected torch.uint8, (3, height, width)"
        )
    return picture


def to_square(pixels: torch.Tensor, size: int, resize: str) -> torch.Tensor:
    """uint8 `(3, height, width)` -> uint8 `(3, size, size)`: stretched, its middle cropped, or padded with grey.

    Bicubic with antialiasing in whole numbers, as Pillow does it and in a quarter of its time. A crop starts at a
    whole pixel.

    Raises:
        ValueError: unknown resize.
    """
    height, width = pixels.shape[1:]
    if resize == "stretch":
        return _resized(pixels, size, size)
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _resized(pixels[:, top : top + side, left : left + side], size, size)
    if resize == "pad":
        longest = max(height, width)
        inside = [max(1, round(side / longest * size)) for side in (height, width)]
        top, left = (round((size - side) / 2) for side in inside)
        square = torch.full((3, size, size), PAD_GREY, dtype=torch.uint8)
        square[:, top : top + inside[0], left : left + inside[1]] = _resized(pixels, *inside)
        return square
    raise ValueError(f"unknown resize '{resize}': choose one of {', '.join(RESIZES)}")


def _resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    size = (height, width)
    return functional.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0].contiguous()


def _is_picture(value: Any) -> bool:
    return isinstance(value, (Image.Image, str, Path)) or (isinstance(value, torch.Tensor) and value.ndim == 3)


def open_picture(picture: Image.Image | torch.Tensor | str | Path) -> Image.Image | torch.Tensor:
    """The picture itself, or the file that a path names."""
    return Image.open(picture) if isinstance(picture, (str, Path)) else picture


def match_pictures(images: Any, placeholders: list[int]) -> list[Any]:
    """Flat list of pictures in order of appearance.

    Raises:
        ValueError: naming the text whose count of pictures is wrong.
    """
    images = [] if images is None else [images] if _is_picture(images) else list(images)
    nested = [not _is_picture(entry) for entry in images]
    if any(nested):
        if not all(nested) or len(images) != len(placeholders):
            raise ValueError(f"{len(images)} lists of pictures for {len(placeholders)} texts: give one list per text")
        for i, (entry, wanted) in enumerate(zip(images, placeholders, strict=True)):
            if len(entry) != wanted:
                raise ValueError(_count_message(f"text {i}", wanted, len(entry)))
        return [picture for entry in images for picture in entry]
    if len(images) != sum(placeholders):
        raise ValueError(_count_message(f"{len(placeholders)} text(s)", sum(placeholders), len(images)))
    return images


def _count_message(where: str, placeholders: int, pictures: int) -> str:
    return (
        f"{where}: {placeholders} {IMAGE_PLACEHOLDER} placeholders but {pictures} pictures; "
        "each placeholder needs one picture"
    )
